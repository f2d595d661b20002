"""The lab's directory: journal, lock, look-ups; and reading the machine's cgroup layout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from samewire.cli.main import cli
from samewire.errors import Conflict, Invalid, NotFound, Unsupported
from samewire.lab import cgroups, names, state, top
from samewire.lab.cni import dns_section, host_local, port_mappings
from samewire.lab.down import mounts_below
from samewire.lab.pids import is_running, read_pid, running_pid
from samewire.lab.podspec import Container, DnsConfig, PodTemplate, Port
from samewire.lab.schedule import Pod
from samewire.lab.state import CGROUP, NETNS, Lab, PodState, load_state, the_lab
from samewire.lab.targets import Entry, execute, resolve, trace_origin, trace_target
from tests.support.lab import lab_state


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(names, "LABS", tmp_path / "labs")
    monkeypatch.setattr(state, "LABS", tmp_path / "labs")
    return tmp_path / "labs"


def pod(name: str, owner: str, namespace: str = "shop") -> PodState:
    template = PodTemplate((Container("c", ports=(Port(80, "UDP", 8080), Port(81))),))
    placed = Pod(namespace, name, owner, "pods", "alpha", template)
    return PodState(placed, f"ns-{name}", "/nowhere", (), ("10.0.0.2",), name, DnsConfig())


def test_journal_lists_newest_first_and_survives_a_torn_line() -> None:
    with Lab.create("lab") as lab:
        lab.note(NETNS, "one")
        lab.note(CGROUP, "/c")
        lab.note(NETNS, "two")
        lab.note(NETNS, "one")
        with (lab.directory / "journal").open("a") as journal:
            journal.write("netn")
        assert lab.noted(NETNS) == ["one", "two"]
        assert lab.noted(CGROUP) == ["/c"]


def test_a_lab_without_a_journal_has_made_nothing() -> None:
    with Lab.create("lab") as lab:
        assert lab.noted(NETNS) == []
        assert not lab.complete


def test_creating_twice_says_what_is_there() -> None:
    with Lab.create("lab"), pytest.raises(Conflict, match="another command is building or removing"):
        Lab.create("lab")
    with pytest.raises(Conflict, match="left half built by an earlier run; `samewire lab down lab`"):
        Lab.create("lab")
    (names.LABS / "lab" / "lab.json").write_text("{}")
    with pytest.raises(Conflict, match="is up already; `samewire lab down lab`"):
        Lab.create("lab")


_HOLDER = """
import sys
from pathlib import Path
from samewire.lab import names
names.LABS = Path(sys.argv[1])
from samewire.lab.state import Lab
Lab.open("lab")
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_goes_with_the_process_that_held_it(runtime_directory: Path) -> None:
    Lab.create("lab").close()
    command = (sys.executable, "-c", _HOLDER, str(runtime_directory))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Conflict):
            Lab.open("lab")
        holder.kill()
        holder.wait()
    Lab.open("lab").close()


def test_which_lab() -> None:
    with pytest.raises(NotFound):
        the_lab(None)
    Lab.create("one").close()
    assert the_lab(None) == "one"
    Lab.create("two").close()
    with pytest.raises(Conflict, match="one, two"):
        the_lab(None)
    assert the_lab("two") == "two"
    with pytest.raises(NotFound):
        the_lab("three")
    with pytest.raises(Conflict, match="is not up"):
        load_state("one")


def test_state_survives_the_disk() -> None:
    with Lab.create("lab") as lab:
        lab.save(lab_state("mixed-cluster"))
    assert load_state("lab") == lab_state("mixed-cluster")


def test_finding_pods() -> None:
    pods = (pod("web-a", "Deployment/web"), pod("web-b", "Deployment/web"), pod("db-0", "StatefulSet/db"))
    lab = msgspec.structs.replace(lab_state("mixed-cluster"), pods=pods)
    assert lab.find_pod("shop/db-0") is pods[2]
    assert lab.find_pod("db-0") is pods[2]
    assert lab.find_pod("web-b") is pods[1]
    assert lab.find_pod("deployment/web") is pods[0]
    assert lab.find_pod("web") is pods[0]
    assert lab.find_pod("shop/web") is pods[0]
    assert lab.find_pod("d") is pods[2]
    with pytest.raises(Conflict, match="shop/web-a, shop/web-b"):
        lab.find_pod("web-")
    with pytest.raises(NotFound, match="`samewire lab show` lists"):
        lab.find_pod("nobody")


def test_owners_of_one_name_are_told_apart() -> None:
    pods = (pod("web-a", "Deployment/web", "red"), pod("web-b", "Deployment/web", "blue"))
    lab = msgspec.structs.replace(lab_state("mixed-cluster"), pods=pods)
    assert lab.find_pod("blue/web") is pods[1]
    for query in ("web", "deployment/web"):
        with pytest.raises(Conflict, match="red/web-a, blue/web-b"):
            lab.find_pod(query)


def test_nodes_and_outside_hosts_by_their_names_alone() -> None:
    lab = lab_state("mixed-cluster")
    for kind, name in (("node", "gamma"), ("outside", "internet")):
        entry = resolve(lab, name)
        assert entry == resolve(lab, f"{kind}/{name}")
        assert entry.argv[1].endswith(f"-{name}")
        assert trace_target(lab, f"{name}:80", "db-0") == trace_target(lab, f"{kind}/{name}:80", "db-0")
    assert trace_target(lab, "internet", "db-0") == "203.0.113.10"
    with pytest.raises(
        Unsupported,
        match=r"^a trace from internet \(a machine\) is not supported here; it needs a pod to begin at$",
    ):
        trace_origin(lab, "internet")
    with pytest.raises(NotFound, match="outside host 'gamma'"):
        resolve(lab, "outside/gamma")


def test_a_trace_to_a_pod_of_another_tenant_is_refused() -> None:
    lab = lab_state("two-tenants")
    own = lab.find_pod("red/db-1").addresses[0]
    assert trace_target(lab, "red/db-1:80", "red/db-0") == f"{own}:80"
    with pytest.raises(Invalid, match="blue/db-1 is a pod of network blue"):
        trace_target(lab, "blue/db-1:80", "red/db-0")


def test_a_container_that_is_not_there_is_told_which_are() -> None:
    with pytest.raises(
        NotFound, match=r"container of shop/web-.* 'nobody' not found: there are nginx, exporter"
    ):
        resolve(lab_state("mixed-cluster"), "web", "nobody")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("db-0", "{}"),
        ("shop/db-0:5432", "{}:5432"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("fd00::1", "fd00::1"),
        ("[fd00::1]:80", "[fd00::1]:80"),
    ],
)
def test_where_a_trace_goes(target: str, expected: str) -> None:
    lab = lab_state("mixed-cluster")
    assert trace_target(lab, target, "web") == expected.format(lab.find_pod("db-0").addresses[0])


def test_a_trace_between_two_pods_of_one_owner() -> None:
    lab = lab_state("mixed-cluster")
    first, second = (state for state in lab.pods if state.pod.owner == "StatefulSet/db")
    assert trace_target(lab, "db:80", "db") == f"{second.addresses[0]}:80"
    assert trace_target(lab, "db:80", "db-1") == f"{first.addresses[0]}:80"
    assert trace_target(lab, "db-0:80", "db-0") == f"{first.addresses[0]}:80"  # who says so gets it


def test_a_trace_to_a_pod_that_has_only_ipv6() -> None:
    lab = lab_state("mixed-cluster")
    pod = msgspec.structs.replace(lab.find_pod("db-0"), addresses=("fd00::2",))
    assert trace_target(msgspec.structs.replace(lab, pods=(pod,)), "db-0:80", "db-0") == "[fd00::2]:80"
    with pytest.raises(NotFound):
        trace_target(lab, "nobody:80", "db-0")


def test_pid_files_count_only_when_complete(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_pid(tmp_path, "c")
    (tmp_path / "c.pid").write_text("12")
    with pytest.raises(NotFound):
        read_pid(tmp_path, "c")
    (tmp_path / "c.pid").write_text("123\n")
    assert read_pid(tmp_path, "c") == 123


def test_pid_files_mean_one_process_while_it_runs(tmp_path: Path) -> None:
    """Not one that has ended, reaped or not, and not another one that has its id by now."""
    with subprocess.Popen(["sleep", "60"]) as child:
        (tmp_path / "c.pid").write_text(f"{child.pid}\n")
        (tmp_path / "c.started").write_text(Path(f"/proc/{child.pid}/stat").read_text().split()[21] + "\n")
        assert running_pid(tmp_path, "c") == child.pid
        (tmp_path / "other.pid").write_text(f"{child.pid}\n")
        (tmp_path / "other.started").write_text("1\n")
        (tmp_path / "unknown.pid").write_text(f"{child.pid}\n")
        for name in ("other", "unknown"):
            with pytest.raises(NotFound):
                running_pid(tmp_path, name)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(tmp_path, "c")
    assert not is_running(tmp_path, "c")


def test_cgroup_layouts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("hugetlb\n")
    mounts.write_text(
        f"cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\ncgroup2 {unified} cgroup2 rw 0 0\n"
    )
    assert cgroups.find_mounts(mounts) == cgroups.Mounts(unified, Path("/sys/fs/cgroup/memory"))
    (unified / "cgroup.controllers").write_text("cpu memory\n")
    assert cgroups.find_mounts(mounts) == cgroups.Mounts(unified, None)
    mounts.write_text("proc /proc proc rw 0 0\n")
    with pytest.raises(Unsupported):
        cgroups.find_mounts(mounts)


@pytest.mark.parametrize("separate", [True, False])
def test_cgroups_of_a_lab_are_noted_and_metered(tmp_path: Path, separate: bool) -> None:
    v2, v1 = tmp_path / "v2", tmp_path / "v1"
    v2.mkdir()
    mounts = cgroups.Mounts(v2, v1 if separate else None)
    with Lab.create("lab") as lab:
        made = cgroups.Cgroups(lab, mounts)
        node = made.node("alpha")
        host, *_ = made.host(node, "host")
        pod_groups = made.member("shop.db-0")
        with pytest.raises(Conflict):
            made.node("alpha")
        noted = lab.noted(CGROUP)
    assert host == v2 / "samewire-lab-lab-alpha/host"
    assert pod_groups[0] == v2 / "samewire-lab/lab/shop.db-0"
    assert len(pod_groups) == (2 if separate else 1)
    assert {str(node), *(str(path) for path in pod_groups)} <= set(noted)
    controls = {str(path.parent.relative_to(v2)) for path in v2.rglob("cgroup.subtree_control")}
    metered = {".", "samewire-lab-lab-alpha", "samewire-lab", "samewire-lab/lab"}
    assert controls == (set() if separate else metered)


def test_usage_reads_both_hierarchies(tmp_path: Path) -> None:
    v2, v1 = tmp_path / "v2", tmp_path / "v1"
    v2.mkdir()
    v1.mkdir()
    (v2 / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    assert cgroups.usage((str(v2),)) == cgroups.Usage(2.5, -1)
    (v1 / "memory.usage_in_bytes").write_text("4096\n")
    assert cgroups.usage((str(v2), str(v1))) == cgroups.Usage(2.5, 4096)


@pytest.mark.parametrize("of_node", [False, True])
def test_top_reads_what_goes_over_the_network_in_any_process_of_a_pod(
    of_node: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first one may have ended. A pod in its node's network has no figures of its own."""
    (tmp_path / "c.pid").write_text(f"{os.getpid()}\n")
    (tmp_path / "c.started").write_text(
        Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19] + "\n"
    )
    found = msgspec.structs.replace(pod("x", "Pod/x"), directory=str(tmp_path))
    template = msgspec.structs.replace(found.pod.template, host_network=of_node)
    found = msgspec.structs.replace(found, pod=msgspec.structs.replace(found.pod, template=template))
    monkeypatch.setattr(top, "_network_bytes", lambda pid: (pid, 2 * pid))
    of_one = msgspec.structs.replace(lab_state("l2bridge"), pods=(found,))
    (used,) = top.Sampler(of_one).sample()
    assert (used.rx_bytes, used.tx_bytes) == ((0, 0) if of_node else (os.getpid(), 2 * os.getpid()))


def test_mounts_below_are_deepest_first() -> None:
    found = mounts_below(Path("/"))
    assert found[-1].parent == Path("/")
    assert Path("/") not in found
    assert mounts_below(Path("/nowhere")) == []


def test_cni_arguments() -> None:
    placed = pod("x", "Pod/x").pod
    assert port_mappings(placed) == [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": ""}]
    section = host_local([{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}], Path("/d"))
    assert section["ranges"] == [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]
    assert section["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert dns_section(DnsConfig(("a",), ("b",), ("c",))) == {
        "nameservers": ["a"],
        "search": ["b"],
        "options": ["c"],
    }


def test_mount_points_of_others_have_any_names(tmp_path: Path) -> None:
    names = (b"/media/m\xe4rz", "/media/\u2028".encode(), b"/media/\x0c\\040x", b"/lab/\xe4\\040\\134")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(b"".join(b"36 35 98:0 / %s rw - ext4 a rw\n" % name for name in names))
    assert [os.fsencode(path) for path in mounts_below(Path("/lab"), mountinfo)] == [b"/lab/\xe4 \\"]
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    mounts = tmp_path / "mounts"
    mounts.write_bytes(b"".join(b"/dev/sda %s ext4 rw 0 0\n" % name for name in names))
    with mounts.open("a") as file:
        file.write(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert cgroups.find_mounts(mounts) == cgroups.Mounts(tmp_path, None)


def test_exec_is_in_the_cgroups_of_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a node's are its sockets known: outside of it, no service would be there."""
    groups = [tmp_path / name for name in ("v2", "v1")]
    for group in groups:
        group.mkdir()
    ran: list[list[str]] = []

    def run(_: str, argv: list[str]) -> None:
        assert [(group / "cgroup.procs").read_text() for group in groups] == ["0", "0"]
        ran.append(argv)

    monkeypatch.setattr(os, "execvp", run)
    execute(Entry(("nsenter", "--"), tuple(map(str, groups))), ["true"])
    assert ran == [["nsenter", "--", "true"]]


def test_all_labs_or_one_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lab down mine --all` would have taken everybody else's along."""
    removed: list[str] = []

    async def remove(name: str) -> None:
        removed.append(name)

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("samewire.lab.state.labs", lambda: ["mine", "theirs"])
    monkeypatch.setattr("samewire.lab.down.down", remove)
    both = CliRunner().invoke(cli, ["lab", "down", "mine", "--all"])
    assert (both.exit_code, removed) == (2, [])
    assert "--all and LAB exclude each other" in both.output
    assert CliRunner().invoke(cli, ["lab", "down", "mine"]).exit_code == 0
    assert CliRunner().invoke(cli, ["lab", "down", "--all"]).exit_code == 0
    assert removed == ["mine", "mine", "theirs"]
