"""Labs of kernel nodes only: they validate the underlay, the pods, the echo servers and the check itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import (
    COMMAND,
    footprint,
    lab_json,
    namespaces,
    processes_in,
    run_lab,
    variant,
    wrong_cells,
)

pytestmark = pytest.mark.root

NAME = f"tk{os.getpid()}"
BOUND_S = 60
"""Far more than anything takes, so that a hang is a failure."""

OVERRIDES = """
overrides:
  - pod: shop/db-*
    container: postgres
    command: [/usr/bin/python3, -m, http.server, "5432", --bind, "::"]
"""


@pytest.fixture
def gone() -> Iterator[None]:
    """Whatever a test does, nothing of its labs stays."""
    yield
    for name in [NAME, *(f"{NAME}{letter}" for letter in "abc")]:
        run_lab("down", name)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The mixed example on kernel nodes alone, with real commands in one workload."""
    file = variant("mixed-cluster", NAME, tmp_path_factory.mktemp("lab"), samewire="kernel")
    file.write_text(file.read_text() + OVERRIDES)
    done = run_lab("up", str(file))
    try:
        assert done.returncode == 0, done.stderr + done.stdout
        yield str(file)
    finally:
        run_lab("down", NAME)


def test_every_cell_is_as_expected(overlay: str) -> None:
    report = lab_json("check", NAME)
    assert wrong_cells(report) == []
    assert report["ok"] is True
    assert len(report["cells"]) > 1000
    assert {fact["category"] for fact in report["facts"]} == {"resolv.conf", "MACs seen upstream"}
    table = run_lab("check", NAME)
    assert table.returncode == 0
    assert "cells as expected" in table.stdout


def test_up_twice_says_so(overlay: str) -> None:
    done = run_lab("up", overlay)
    assert done.returncode == 1
    assert f"lab '{NAME}' is up already" in done.stderr
    assert footprint(NAME)["namespaces"]


def test_containers_share_the_pods_network_and_have_their_own_files(overlay: str) -> None:
    def inside(*words: str) -> str:
        done = run_lab("exec", "--lab", NAME, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pod = next(pod for pod in lab_json("show", NAME)["pods"] if pod["pod"]["name"].startswith("web-"))
    name = pod["pod"]["name"]
    assert inside(name, "--", "hostname").strip() == name
    for container in ("nginx", "exporter"):
        listing = json.loads(inside("-c", container, name, "--", "ip", "-json", "address", "show", "eth0"))
        found = {item["local"] for item in listing[0]["addr_info"] if item["scope"] == "global"}
        assert found == set(pod["addresses"])
        hosts = inside("-c", container, name, "--", "cat", "/etc/hosts")
        assert f"{pod['addresses'][0]}\t{name}" in hosts
    assert "search shop.svc.cluster.local" in inside(name, "--", "cat", "/etc/resolv.conf")
    assert "cni0" in inside("node/alpha", "--", "ip", "-brief", "link")
    assert "203.0.113.10" in inside("outside/internet", "--", "ip", "-brief", "address")
    assert "seg0" in inside("switch", "--", "bridge", "fdb")
    missing = run_lab("exec", "--lab", NAME, "nobody", "--", "true")
    assert (missing.returncode, missing.stderr.strip()) == (
        3,
        "Error: pod 'nobody' not found: `samewire lab show` lists what there is",
    )


def test_exec_hands_on_the_exit_status(overlay: str) -> None:
    assert run_lab("exec", "--lab", NAME, "db-0", "--", "sh", "-c", "exit 7").returncode == 7


def test_commands_of_the_cluster_file_run_instead_of_the_stand_in(overlay: str) -> None:
    script = "import urllib.request as u; print(u.urlopen('http://[::1]:5432/').headers['Server'])"
    done = run_lab("exec", "--lab", NAME, "db-0", "--", "/usr/bin/python3", "-c", script)
    assert done.stdout.startswith("SimpleHTTP"), done.stderr


def test_top_meters_pods_and_shows_their_class(overlay: str) -> None:
    pods = {
        item["pod"]: item for item in json.loads(run_lab("top", NAME, "--json", "--interval", "0.2").stdout)
    }
    web = next(item for name, item in pods.items() if name.startswith("shop/web"))
    assert (web["qos"], web["running"], web["containers"]) == ("Burstable", 2, 2)
    assert 3 <= web["oom_score_adj"] <= 999
    assert web["memory_bytes"] > 1_000_000
    assert web["cpu_s"] > 0
    assert web["rx_bytes"] > 0
    assert pods["shop/db-0"]["qos"] == "Guaranteed"
    assert next(item for name, item in pods.items() if "dns-cache" in name)["oom_score_adj"] == 1000


def test_a_broken_path_is_a_wrong_cell_and_status_1(overlay: str) -> None:
    """Take a route away, as a fault would: exactly that path must be reported."""
    subprocess.run(
        ("ip", "-n", f"swlab-{NAME}-gamma", "route", "del", "10.244.1.0/24"), check=True, capture_output=True
    )
    try:
        checked = run_lab("check", NAME, "--json")
    finally:
        subprocess.run(
            (
                *("ip", "-n", f"swlab-{NAME}-gamma", "route", "add", "10.244.1.0/24", "via", "10.244.1.0"),
                *("dev", "vxlan4096", "onlink"),
            ),
            check=True,
            capture_output=True,
        )
    assert checked.returncode == 1
    wrong = [cell for cell in json.loads(checked.stdout)["cells"] if not cell["ok"]]
    across = {
        (cell["category"], cell["row"], cell["family"])
        for cell in wrong
        if cell["category"].startswith("pod to pod")
    }
    assert across == {
        ("pod to pod, other node", "alpha (kernel) → gamma (kernel)", 4),
        ("pod to pod, other node", "gamma (kernel) → alpha (kernel)", 4),
    }
    assert not any(cell["family"] == 6 for cell in wrong)


def test_a_check_that_is_stopped_leaves_no_probe_runner(overlay: str) -> None:
    """By a time limit, say, where a node is cut off and each of its probes waits for its answer."""
    port = ("ip", "-n", f"swlab-{NAME}-switch", "link", "set", "node1")
    spaces = namespaces(NAME)
    before = set(processes_in(spaces))
    subprocess.run((*port, "down"), check=True)
    try:
        with subprocess.Popen((*COMMAND, "check", NAME), stdout=subprocess.DEVNULL) as check:
            while check.poll() is None and len(processes_in(spaces)) < len(before) + 5:
                pass
            check.terminate()
            assert check.wait(BOUND_S) == 128 + signal.SIGTERM
        assert set(processes_in(spaces)) <= before
    finally:
        subprocess.run((*port, "up"), check=True)


def test_a_wrong_source_address_is_a_wrong_cell(overlay: str) -> None:
    """Masquerade towards a destination that is excepted: everything is reachable, and still wrong."""
    netns = f"swlab-{NAME}-beta"
    rule = ("POSTROUTING", "-d", "198.51.100.0/24", "-j", "MASQUERADE")
    subprocess.run(("ip", "netns", "exec", netns, "iptables", "-t", "nat", "-I", *rule), check=True)
    try:
        wrong = [cell for cell in lab_json("check", NAME)["cells"] if not cell["ok"]]
    finally:
        subprocess.run(("ip", "netns", "exec", netns, "iptables", "-t", "nat", "-D", *rule), check=True)
    assert {cell["row"] for cell in wrong} == {"beta (kernel) → datacenter"}
    assert {cell["protocol"] for cell in wrong} == {"tcp", "udp", "icmp", "tcp+", "udp+"}
    assert all("the far side saw 172.31.1.2, expected 10.244.2." in cell["why"] for cell in wrong)


@pytest.mark.usefixtures("gone")
def test_down_leaves_nothing(tmp_path: Path) -> None:
    name = f"{NAME}a"
    before = footprint(name)
    assert not any(before.values())
    file = variant("mixed-cluster", name, tmp_path, samewire="kernel")
    assert run_lab("up", str(file)).returncode == 0
    during, spaces = footprint(name), namespaces(name)
    assert all(during.values()), during
    assert len(processes_in(spaces)) > 20
    assert run_lab("down", name).stdout == f"lab {name} is gone\n"
    assert footprint(name) == before
    assert processes_in(spaces) == []
    again = run_lab("down", name)
    assert (again.returncode, again.stdout) == (0, f"lab {name} is not up\n")


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("journal_lines", [1, 4, 9, 16, 24, 33, 42])
def test_down_after_kill_9_of_up_at_any_step(tmp_path: Path, journal_lines: int) -> None:
    name = f"{NAME}b"
    file = variant("mixed-cluster", name, tmp_path, samewire="kernel")
    journal = Path(f"/run/samewire-lab/{name}/journal")
    with subprocess.Popen((*COMMAND, "up", str(file)), stdout=subprocess.DEVNULL) as up:
        while up.poll() is None:
            if journal.exists() and len(journal.read_text().splitlines()) >= journal_lines:
                break
        up.kill()
    spaces = namespaces(name)
    if not Path(f"/run/samewire-lab/{name}/lab.json").exists():
        refused = run_lab("up", str(file))
        assert "left half built by an earlier run" in refused.stderr
    assert run_lab("down", name).returncode == 0
    assert not any(footprint(name).values()), footprint(name)
    assert processes_in(spaces) == []


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_up_that_is_stopped_undoes_itself(tmp_path: Path, how: signal.Signals) -> None:
    """By Ctrl-C, by a time limit, and by the end of the terminal, which takes the output with it."""
    name = f"{NAME}b"
    file = variant("mixed-cluster", name, tmp_path, samewire="kernel")
    journal = Path(f"/run/samewire-lab/{name}/journal")
    with subprocess.Popen((*COMMAND, "up", str(file)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as up:
        while up.poll() is None and not (journal.exists() and len(journal.read_text().splitlines()) >= 16):
            pass
        assert up.stdout is not None
        if how is signal.SIGHUP:
            up.stdout.close()
        up.send_signal(how)
        status = up.wait(BOUND_S)
    assert status != 0
    assert not any(footprint(name).values()), footprint(name)


def test_an_up_that_waits_for_its_file_can_be_stopped(tmp_path: Path) -> None:
    """The file may be a pipe (``<(...)``), and who is to write it may hang."""
    fifo = tmp_path / "lab.yaml"
    os.mkfifo(fifo)
    with subprocess.Popen((*COMMAND, "up", str(fifo)), stdout=subprocess.DEVNULL) as up:
        try:
            with fifo.open("w"):  # returns as soon as it is being read
                up.terminate()
                assert up.wait(BOUND_S) == -signal.SIGTERM
        finally:
            up.kill()


@pytest.mark.usefixtures("gone")
def test_a_killed_down_is_simply_run_again(tmp_path: Path) -> None:
    name = f"{NAME}b"
    assert run_lab("up", str(variant("mixed-cluster", name, tmp_path, samewire="kernel"))).returncode == 0
    spaces = namespaces(name)
    processes = len(processes_in(spaces))
    with subprocess.Popen((*COMMAND, "down", name), stdout=subprocess.DEVNULL) as down:
        while down.poll() is None and len(processes_in(spaces)) == processes:
            pass
        down.kill()
    assert run_lab("down", name).returncode == 0
    assert not any(footprint(name).values()), footprint(name)


@pytest.mark.usefixtures("gone")
def test_a_failed_up_undoes_itself_and_says_why(tmp_path: Path) -> None:
    name = f"{NAME}c"
    file = variant("mixed-cluster", name, tmp_path, samewire="kernel")
    file.write_text(file.read_text().replace("10.244.3.0/24", "10.244.3.0/29"))
    template = "template: {spec: {nodeName: gamma, containers: [{name: c}]}}"  # past the scheduler
    crowd = f"{{kind: StatefulSet, metadata: {{name: crowd}}, spec: {{replicas: 30, {template}}}}}"
    (tmp_path / "crowd.yaml").write_text(crowd)
    file.write_text(file.read_text() + "  - path: crowd.yaml\n")
    done = run_lab("up", str(file))
    assert done.returncode == 1
    assert "no IP addresses available" in done.stderr
    assert not any(footprint(name).values()), footprint(name)


@pytest.mark.usefixtures("gone")
def test_l2bridge_shows_one_mac_a_node_and_notices_another(tmp_path: Path) -> None:
    file = variant("l2bridge", f"{NAME}a", tmp_path, samewire="kernel")
    assert run_lab("up", str(file)).returncode == 0
    assert wrong_cells(lab_json("check", f"{NAME}a")) == []
    node = ("ip", "-n", f"swlab-{NAME}a-alpha")
    subprocess.run((*node, "link", "add", "leak", "link", "eth0", "up", "type", "macvlan"), check=True)
    subprocess.run((*node, "address", "add", "172.29.200.1/16", "dev", "leak"), check=True)
    ping = ("ip", "netns", "exec", f"swlab-{NAME}a-alpha", "ping", "-c1", "-I", "leak", "172.29.0.1")
    subprocess.run(ping, check=True, capture_output=True)
    facts = [fact for fact in lab_json("check", f"{NAME}a")["facts"] if not fact["ok"]]
    assert [(fact["category"], fact["row"]) for fact in facts] == [("MACs seen upstream", "alpha")]
    assert len(facts[0]["observed"].split()) == 2


@pytest.mark.usefixtures("gone")
def test_a_pod_whose_namespace_is_gone_is_wrong_by_itself(tmp_path: Path) -> None:
    """What it was to send, silence included, and what was to reach it; the rest is checked as ever."""
    name = f"{NAME}a"
    file = variant("two-tenants", name, tmp_path)
    assert run_lab("up", str(file)).returncode == 0
    pod = next(one for one in lab_json("top", name, "--interval", "0.1") if one["pod"].startswith("red/"))[
        "pod"
    ]
    netns = f"swlab-{name}.{pod.replace('/', '.')}"
    subprocess.run(("ip", "netns", "del", netns), check=True)
    cells = lab_json("check", name)["cells"]
    assert {cell["why"] for cell in cells if cell["from"] == pod} == {
        "the sender's network namespace is gone"
    }
    others = [cell for cell in cells if pod not in {cell["from"], cell["to"]}]
    assert others
    assert all(cell["ok"] for cell in others)


@pytest.mark.usefixtures("gone")
def test_what_the_machine_unmounts_is_in_use_by_no_pod(tmp_path: Path) -> None:
    name, disk = f"{NAME}a", tmp_path / "disk"
    disk.mkdir()

    def mount(*arguments: str) -> None:
        subprocess.run(("mount", *arguments), check=True)

    mount("--bind", str(tmp_path), str(tmp_path))
    try:
        mount("--make-shared", str(tmp_path))  # as a machine's root is
        mount("-t", "tmpfs", "none", str(disk))
        up = run_lab("up", str(variant("mixed-cluster", name, tmp_path, samewire="kernel")))
        subprocess.run(("umount", str(disk)), check=True)
        assert up.returncode == 0, up.stderr
        own = Path("/proc/self/ns/mnt").stat().st_ino
        pids = [int(text.split()[0]) for text in processes_in(namespaces(name))]
        apart = [pid for pid in pids if Path(f"/proc/{pid}/ns/mnt").stat().st_ino != own]
        assert apart
        assert not any(str(disk) in Path(f"/proc/{pid}/mountinfo").read_text() for pid in apart)
    finally:
        subprocess.run(("umount", "--recursive", str(tmp_path)), check=True)


@pytest.mark.usefixtures("gone")
def test_a_node_with_nobody_to_talk_to_is_as_expected(tmp_path: Path) -> None:
    """A switch forgets who has been silent for five minutes; so has a lab of one node once its pods are up."""
    name = f"{NAME}a"
    file = tmp_path / f"{name}.yaml"
    node = "{name: solo, stack: kernel, pod_cidrs: [10.244.1.0/24]}"
    network = "{name: pods, type: Overlay}"
    file.write_text(f"underlay: {{type: l2}}\nnodes: [{node}]\nnetworks: [{network}]\n")
    assert run_lab("up", str(file)).returncode == 0
    quiet = ("ip", "netns", "exec", f"swlab-{name}-solo", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    subprocess.run(quiet, check=True)
    eth0 = subprocess.check_output(("ip", "-n", f"swlab-{name}-solo", "-json", "link", "show", "eth0"))
    entry = ("fdb", "del", json.loads(eth0)[0]["address"], "dev", "node0", "master")
    subprocess.run(("bridge", "-n", f"swlab-{name}-switch", *entry), check=False, capture_output=True)
    assert wrong_cells(lab_json("check", name)) == []


@pytest.mark.usefixtures("gone")
def test_l2bridge_with_routed_pod_prefixes(tmp_path: Path) -> None:
    file = variant("l2bridge", f"{NAME}b", tmp_path, samewire="kernel")
    text = file.read_text().replace('172.29.0.0/16, "fd29::/64", ', '10.244.0.0/16, "fd00:244::/48", ')
    for number in (1, 2, 3):
        text = text.replace(f"172.29.{number}.0/24", f"10.244.{number}.0/24")
        text = text.replace(f"fd29::{number}:0/112", f"fd00:244:0:{number}::/64")
    text = text.replace('"2001:db8:100::10"]', '"2001:db8:100::10"]\n    pod_routes: true')
    file.write_text(text)
    done = run_lab("up", str(file))
    assert done.returncode == 0, done.stderr
    assert wrong_cells(lab_json("check", f"{NAME}b")) == []
