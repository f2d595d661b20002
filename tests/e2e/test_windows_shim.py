"""A Windows program under Wine, with our computenetwork.dll and vmcompute.dll, against a whole daemon.

The libraries are where Windows programs look for them, in system32 of a prefix of this test's own. Wine has no
libraries of these names, so that nothing but ours can answer.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import samewire
from samewire.hcn.client import HcnClient
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.library_client import LibraryClient
from samewire.hcn.notifications import NotificationType
from samewire.hcn.schema import Kind
from samewire.hcn.switch import EndpointStats
from samewire.kernel.computenetwork import ComputeNetwork
from tests.support.node import DaemonProcess, NodeNet, daemon, overlay

pytestmark = pytest.mark.root

BUILT = Path(samewire.__file__).parent / "_build" / "windows"
LIBRARIES = ("computenetwork.dll", "vmcompute.dll", "bcryptprimitives.dll")
FILES = (*LIBRARIES, "client.exe", "hostile.exe", "libcomputenetwork.so")
LISTEN = "127.0.0.1:9434"
LIMIT_S = 180


@pytest.fixture(scope="module")
def built() -> None:
    missing = [name for name in FILES if not (BUILT / name).exists()]
    if missing:
        pytest.fail(f"{', '.join(missing)} not in {BUILT}: run `make windows-shim`", pytrace=False)


@pytest.fixture
def node(net: NodeNet, tmp_path: Path) -> Iterator[DaemonProcess]:
    with daemon(net, tmp_path, hns_listen=LISTEN) as process:
        yield process.start()


def _packaged_wine() -> str:
    """Where Debian's package has it: not in PATH."""
    for path in sorted(Path("/usr/lib").glob("wine*/wine64")):
        return str(path)
    pytest.fail("no wine64, neither in PATH nor below /usr/lib: install the package wine64", pytrace=False)


class Wine:
    """A private Windows, as far as it goes: `run` programs in a node's namespace."""

    def __init__(self, directory: Path) -> None:
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "WINEPREFIX": str(directory / "prefix"),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
        }
        directory.mkdir(exist_ok=True)
        self._wine = shutil.which("wine64") or _packaged_wine()

    def install(self) -> None:
        """Make the prefix and put the libraries where they belong."""
        subprocess.run([self._wine, "wineboot", "--init"], env=self._env, check=True, timeout=LIMIT_S)
        self.stop()
        system32 = Path(self._env["WINEPREFIX"]) / "drive_c/windows/system32"
        for name in LIBRARIES:
            shutil.copy(BUILT / name, system32 / name)

    def run(self, net: NodeNet, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        with self.start(net, *command, **env) as process:
            try:
                printed, said = process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, printed, said)

    def start(self, net: NodeNet, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start a program."""
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{net.node}", self._wine, *command],
            env={**self._env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        """End what serves the prefix: it makes the programs' sockets, in the namespace that it runs in."""
        server = Path(self._wine).with_name("wineserver")
        found = str(server) if server.exists() else shutil.which("wineserver")
        if found is None:
            return
        for what in ("-k", "-w"):
            subprocess.run([found, what], env=self._env, capture_output=True, timeout=LIMIT_S, check=False)


@pytest.fixture(scope="module")
def installed(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    made = Wine(tmp_path_factory.mktemp("wine"))
    try:
        made.install()
        yield made
    finally:
        made.stop()


@pytest.fixture
def wine(installed: Wine) -> Iterator[Wine]:
    try:
        yield installed
    finally:
        installed.stop()


def test_every_export_of_both_libraries(net: NodeNet, node: DaemonProcess, wine: Wine) -> None:
    token = (node.run_dir / "hns.token").read_text().strip()
    done = wine.run(net, str(BUILT / "client.exe"), SAMEWIRE_HNS_ADDRESS=LISTEN, SAMEWIRE_HNS_TOKEN=token)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout
    assert "WRONG" not in done.stdout
    assert done.stdout.count("has been called") >= 80
    assert node.request("GET", "/v2/networks") == []
    by_file = wine.run(
        net,
        str(BUILT / "client.exe"),
        SAMEWIRE_HNS_ADDRESS=LISTEN,
        SAMEWIRE_HNS_TOKEN_FILE=f"Z:{node.run_dir}/hns.token".replace("/", "\\"),
    )
    assert by_file.returncode == 0, by_file.stdout
    refused = wine.run(
        net, str(BUILT / "client.exe"), SAMEWIRE_HNS_ADDRESS=LISTEN, SAMEWIRE_HNS_TOKEN="guess"
    )
    assert refused.returncode != 0
    assert "WRONG HcnCreateNetwork" in refused.stdout


def test_what_no_caller_should_give(net: NodeNet, node: DaemonProcess, wine: Wine) -> None:
    token = (node.run_dir / "hns.token").read_text().strip()
    for mode, secret in (((), token), (("denied",), "guess")):
        hostile = str(BUILT / "hostile.exe")
        done = wine.run(net, hostile, *mode, SAMEWIRE_HNS_ADDRESS=LISTEN, SAMEWIRE_HNS_TOKEN=secret)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0 wrong" in done.stdout
    assert node.request("GET", "/v2/networks") == []


def test_a_program_outlives_the_daemon(net: NodeNet, node: DaemonProcess, wine: Wine) -> None:
    token = (node.run_dir / "hns.token").read_text().strip()
    environment = {"SAMEWIRE_HNS_ADDRESS": LISTEN, "SAMEWIRE_HNS_TOKEN": token}
    steps: dict[str, Callable[[], object]] = {"stop": partial(node.stop, signal.SIGKILL), "start": node.start}
    printed = []
    with wine.start(net, str(BUILT / "hostile.exe"), "outage", **environment) as process:
        assert process.stdout is not None
        for line in process.stdout:  # every wait of the program is bounded
            printed.append(line)
            if line.strip() in steps:
                steps.pop(line.strip())()
    assert process.returncode == 0, "".join(printed)
    assert not steps
    assert node.request("GET", "/v2/networks") == []


@pytest.mark.parametrize(
    "header", [b"", b"Authorization: Bearer guess\r\n", b"Authorization: Bearer \xff\r\n"]
)
def test_nobody_without_the_token(net: NodeNet, node: DaemonProcess, header: bytes) -> None:
    node.request("POST", "/v2/networks", overlay())
    said = _raw(net, b"GET /v2/networks HTTP/1.0\r\n" + header + b"\r\n")
    assert b" 403 " in said.split(b"\r\n")[0]
    assert b"token" in said
    token = (node.run_dir / "hns.token").read_bytes().strip()
    said = _raw(net, b"GET /v2/networks HTTP/1.0\r\nAuthorization: Bearer " + token + b"\r\n\r\n")
    assert b" 200 " in said.split(b"\r\n")[0]
    assert (node.run_dir / "hns.token").stat().st_mode & 0o777 == 0o600


def _raw(net: NodeNet, request: bytes) -> bytes:
    """What the listener answers to bytes."""

    with net.inside(), socket.create_connection(("127.0.0.1", 9434), timeout=10) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_python_client_over_the_librarys_exports(
    built: None, net: NodeNet, node: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ABI is that of a library built for Linux from the shim's own sources: no Windows Python runs here."""
    monkeypatch.setenv("SAMEWIRE_HNS_ADDRESS", LISTEN)
    monkeypatch.setenv("SAMEWIRE_HNS_TOKEN_FILE", str(node.run_dir / "hns.token"))
    with net.inside():
        client = LibraryClient(ComputeNetwork(str(BUILT / "libcomputenetwork.so")))
        network = client.create(Kind.NETWORK, overlay("päd-中"))
        assert client.list(Kind.NETWORK, Name="päd-中") == [network]
        assert client.list(Kind.NETWORK, Name="another") == []
        endpoint = client.create(Kind.ENDPOINT, {"HostComputeNetwork": network["ID"], "Name": "e"})
        acl = {"Type": "ACL", "Settings": {"Action": "Block", "Direction": "In", "Priority": 100}}
        changed = client.modify(Kind.ENDPOINT, endpoint["ID"], "Policy", "Add", {"Policies": [acl]})
        assert [policy["Type"] for policy in changed["Policies"]] == ["ACL"]
        entries = [{"DestinationPrefix": "10.99.0.0/16", "NextHop": "10.244.0.1"}]
        route = client.create(Kind.ROUTE, {"HostComputeEndpoints": [endpoint["ID"]], "Setting": entries})
        assert [entry["DestinationPrefix"] for entry in route["Setting"]] == ["10.99.0.0/16"]
        client.delete(Kind.ROUTE, route["ID"])
        assert client.create(Kind.ROUTE, route) == route  # as hcsshim changes the endpoints of one
        client.delete(Kind.ROUTE, route["ID"])
        with pytest.raises(HcnError) as taken:
            client.create(Kind.NETWORK, {**overlay("other"), "ID": network["ID"]})
        assert taken.value.code is HcnCode.NETWORK_ALREADY_EXISTS
        typed = HcnClient(client)
        assert typed.endpoints.stats(endpoint["ID"]) == EndpointStats()
        assert typed.endpoints.addresses(endpoint["ID"]) == (endpoint["IpConfigurations"][0]["IpAddress"],)
        with typed.notifications() as events:
            client.delete(Kind.NETWORK, network["ID"])
            told = [next(events) for _ in range(2)]
        assert [event.type for event in told] == [
            NotificationType.NETWORK_PRE_DELETE,
            NotificationType.NETWORK_DELETE,
        ]
        assert told[1].data["ID"] == network["ID"]
        with pytest.raises(HcnError) as gone:
            client.get(Kind.ENDPOINT, endpoint["ID"])
        assert gone.value.code is HcnCode.ERROR_NOT_FOUND
    assert node.request("GET", "/v2/networks") == []
