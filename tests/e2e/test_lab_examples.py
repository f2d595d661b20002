"""The shipped examples, as they are: Samewire nodes beside stock ones, every cell as expected, nothing left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import (
    COMMAND,
    EXAMPLES,
    footprint,
    lab_json,
    namespaces,
    processes_in,
    run_lab,
    variant,
    wrong_cells,
)

pytestmark = pytest.mark.root

NAME = f"te{os.getpid()}"


@pytest.fixture(autouse=True)
def gone() -> Iterator[None]:
    """Whatever a test does, nothing of its lab stays."""
    yield
    run_lab("down", NAME)


def up(example: str, directory: Path) -> None:
    done = run_lab("up", str(variant(example, NAME, directory)))
    assert done.returncode == 0, done.stderr + done.stdout


def assert_gone(spaces: dict[int, int]) -> None:
    left = footprint(NAME)
    assert not any(left.values()), left
    assert processes_in(spaces) == []


@pytest.mark.parametrize("example", ["mixed-cluster", "l2bridge", "two-tenants", "guestbook"])
def test_every_cell_of_an_example_and_nothing_left(example: str, tmp_path: Path) -> None:
    up(example, tmp_path)
    spaces = namespaces(NAME)
    assert wrong_cells(lab_json("check", NAME)) == []
    assert run_lab("down", NAME).returncode == 0
    assert_gone(spaces)


@pytest.mark.parametrize("example", ["l2bridge", "guestbook"])
def test_every_cell_without_ipv4(example: str, tmp_path: Path) -> None:
    """No IPv4 anywhere: nodes, tunnels, pods, Services. What pods behind the kernel node's address teach the others,
    that their interfaces are smaller than its own, narrows the tunnel to it, too."""
    file = variant(example, NAME, tmp_path)
    text = re.sub(r"\n  ipv4: .*", "\n  ipv4: null", file.read_text())
    file.write_text(re.sub(r"\d+\.\d+\.\d+\.\d+(/\d+)?,? *", "", text))
    done = run_lab("up", str(file))
    assert done.returncode == 0, done.stderr + done.stdout
    spaces = namespaces(NAME)
    report = lab_json("check", NAME)
    assert wrong_cells(report) == []
    assert {cell["address"] for cell in report["cells"] if cell["family"] == 4} == {"127.0.0.1"}
    assert run_lab("down", NAME).returncode == 0
    assert_gone(spaces)


@pytest.mark.parametrize("distribution", ["PreferSameZone", "PreferSameNode"])
def test_services_that_prefer_who_is_near(distribution: str, tmp_path: Path) -> None:
    """Two zones; the pods behind most services are in both, of others in one alone, which then serves all."""
    published = (EXAMPLES / "manifests" / "guestbook.yaml").read_text()
    near = re.sub(
        r"(kind: Service\n(?:.*\n)*?spec:\n)", rf"\1  trafficDistribution: {distribution}\n", published
    )
    (tmp_path / "near.yaml").write_text(near)
    file = variant("guestbook", NAME, tmp_path)
    text = file.read_text().replace(f"{EXAMPLES}/manifests/guestbook.yaml", "near.yaml")
    for node, zone in (("alpha", "a"), ("beta", "b"), ("gamma", "b")):
        labels = f"    labels: {{topology.kubernetes.io/zone: {zone}}}\n"
        text = text.replace(f"  - name: {node}\n", f"  - name: {node}\n{labels}")
    file.write_text(text)
    done = run_lab("up", str(file))
    assert done.returncode == 0, done.stderr + done.stdout
    report = lab_json("check", NAME)
    assert wrong_cells(report) == []
    narrow = [c["expected"]["hostnames"] for c in report["cells"] if c["category"] == "service: ClusterIP"]
    assert min(map(len, narrow)) < max(map(len, narrow))


CLAIM = """
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  externalIPs: [198.51.100.77]
  ports: [{port: 80, targetPort: TARGET}]
  selector: {SELECTOR}
"""


def test_two_services_that_claim_one_address(tmp_path: Path) -> None:
    """The first by name has it, and is asked for it; the other one is named, and has the rest."""
    second = CLAIM.replace("NAME", "second").replace("TARGET", "6379").replace("SELECTOR", "app: redis")
    first = CLAIM.replace("NAME", "first").replace("TARGET", "http").replace("SELECTOR", "tier: frontend")
    (tmp_path / "more.yaml").write_text(second + first)
    file = variant("guestbook", NAME, tmp_path)
    file.write_text(file.read_text() + "  - path: more.yaml\n")
    done = run_lab("up", str(file))
    assert done.returncode == 0, done.stderr + done.stdout
    reason = "198.51.100.77 port 80/TCP is that of Service default/first, the rest is served"
    assert f"skipped ({reason}): Service/default/second" in done.stdout
    report = lab_json("check", NAME)
    assert wrong_cells(report) == []
    rows = {cell["row"].partition("default/")[2] for cell in report["cells"]}
    assert {"first:80", "second:80"} <= rows
    asked = {cell["row"] for cell in report["cells"] if cell["address"] == "198.51.100.77"}
    assert {row.partition(" → ")[2] for row in asked} == {"default/first:80"}


def test_services_in_user_mode(tmp_path: Path) -> None:
    file = variant("guestbook", NAME, tmp_path)
    file.write_text(file.read_text().replace("\nservices:", "\nservices:\n  proxy_mode: userspace"))
    assert run_lab("up", str(file)).returncode == 0
    assert lab_json("show", NAME)["cluster"]["services"]["proxy_mode"] == "userspace"
    spaces = namespaces(NAME)
    assert wrong_cells(lab_json("check", NAME)) == []
    assert run_lab("down", NAME).returncode == 0
    assert_gone(spaces)


def test_a_trace_goes_on_where_the_packet_goes(tmp_path: Path) -> None:
    up("mixed-cluster", tmp_path)
    pods = {pod["pod"]["name"]: pod for pod in lab_json("show", NAME)["pods"]}
    target = f"{pods['db-1']['addresses'][0]}:5432"
    trail = lab_json("trace", "--lab", NAME, "--from", "db-0", "--to", target)
    assert trail["arrived"] is True
    assert [(hop["node"], hop["fate"]) for hop in trail["hops"]] == [("alpha", "tunnel"), ("beta", "port")]
    assert trail["hops"][1]["endpoint"]["name"] == "shop/db-1"
    refused = run_lab("trace", "--lab", NAME, "--from", "migrate", "--to", target)
    assert refused.returncode == 1
    assert "on kernel node gamma" in refused.stderr


def test_tenants_have_the_same_addresses_and_do_not_meet(tmp_path: Path) -> None:
    up("two-tenants", tmp_path)
    addresses: dict[str, set[str]] = {"red": set(), "blue": set()}
    for pod in lab_json("show", NAME)["pods"]:
        addresses[pod["pod"]["network"]] |= set(pod["addresses"])
    assert addresses["red"] < addresses["blue"]
    report = lab_json("check", NAME)
    silent = [cell for cell in report["cells"] if cell["category"] == "other tenant's address"]
    assert {cell["address"] for cell in silent} == addresses["blue"] - addresses["red"]
    assert wrong_cells(report) == []


def test_a_daemon_and_a_container_that_have_ended(tmp_path: Path) -> None:
    """Their ids are another process's by now: that is not taken for them, entered or killed."""
    up("l2bridge", tmp_path)
    directory = Path("/run/samewire-lab") / NAME
    pods = {pod["pod"]: pod for pod in lab_json("top", NAME, "--interval", "0.1")}
    name = next(iter(pods))
    node = pods[name]["node"]
    daemon = directory / node / "daemon.pid"
    container = next(
        path
        for path in (directory / "pods").glob("*/*.pid")
        if name.replace("/", "-") in path.parent.name.replace(".", "-") and not path.name.startswith("_")
    )
    assert wrong_cells(lab_json("check", NAME)) == []
    with subprocess.Popen(["sleep", "600"]) as foreign:
        for path in (daemon, container):
            os.kill(int(path.read_text()), signal.SIGKILL)
            path.write_text(f"{foreign.pid}\n")
        assert f"{node}: it has ended" in wrong_cells(lab_json("check", NAME))
        now = next(pod for pod in lab_json("top", NAME, "--interval", "0.1") if pod["pod"] == name)
        assert now["running"] == pods[name]["running"] - 1
        entered = run_lab("exec", "--lab", NAME, "-c", container.stem, name, "--", "true")
        assert entered.returncode != 0
        assert "running container" in entered.stderr
        assert run_lab("down", NAME).returncode == 0
        assert foreign.poll() is None
        foreign.kill()


def test_l2bridge_with_routed_pod_prefixes(tmp_path: Path) -> None:
    file = variant("l2bridge", NAME, tmp_path)
    text = file.read_text().replace('172.29.0.0/16, "fd29::/64", ', '10.244.0.0/16, "fd00:244::/48", ')
    for number in (1, 2, 3):
        text = text.replace(f"172.29.{number}.0/24", f"10.244.{number}.0/24")
        text = text.replace(f"fd29::{number}:0/112", f"fd00:244:0:{number}::/64")
    file.write_text(text.replace('"2001:db8:100::10"]', '"2001:db8:100::10"]\n    pod_routes: true'))
    assert run_lab("up", str(file)).returncode == 0
    assert wrong_cells(lab_json("check", NAME)) == []


@pytest.mark.parametrize("journal_lines", [14, 20, 30])
def test_down_after_kill_9_of_up_with_daemons(tmp_path: Path, journal_lines: int) -> None:
    file = variant("mixed-cluster", NAME, tmp_path)
    journal = Path(f"/run/samewire-lab/{NAME}/journal")
    with subprocess.Popen((*COMMAND, "up", str(file)), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if journal.exists() and len(journal.read_text().splitlines()) >= journal_lines:
                break
        process.kill()
    spaces = namespaces(NAME)
    assert run_lab("down", NAME).returncode == 0
    assert_gone(spaces)
