"""A sidecar's redirection, from the CNI configuration to the daemon's death in the middle of a change."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.node import DaemonProcess, Json, NodeNet, in_namespace, overlay, path_of
from tests.support.node_pods import Listener

pytestmark = pytest.mark.root

SERVER, OUTBOUND = 8080, 15001
SIDECAR: Json = {
    "Type": "L4WFPPROXY",
    "Settings": {"OutboundProxyPort": str(OUTBOUND), "UserSID": "S-1-22-1-1337"},
}
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as made:
    print(made.makefile().readline().strip())
"""


@pytest.fixture
def pods(net: NodeNet) -> Iterator[tuple[str, str]]:
    """The first has a proxy, the second a server."""
    first, second = net.pod(), net.pod()
    with ExitStack() as stack:
        Listener(first, "proxy", OUTBOUND, stack)
        Listener(second, "server", SERVER, stack)
        yield first, second


def ask(pod: str) -> str:
    """Who answers the first pod at the second one's address."""
    return in_namespace(pod, sys.executable, "-c", ASK, "10.244.0.3", str(SERVER)).stdout.strip()


def tables(pod: str) -> list[str]:
    command = ["nsenter", f"--net={path_of(pod)}", "nft", "list", "tables"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def with_sidecar(node: DaemonProcess) -> Json:
    conf = node.conf()
    conf["policies"].append({"name": "EndpointPolicy", "value": SIDECAR})
    return conf


def start(node: DaemonProcess, pods: tuple[str, str], first: Json) -> Json:
    """The daemon with both pods; the first one's configuration with the result of its ADD."""
    node.start()
    node.request("POST", "/v2/networks", overlay())
    result = node.add("pod0", pods[0], first)
    node.add("pod1", pods[1], node.conf())
    return {**first, "prevResult": result}


PROXIED = f"proxy 10.244.0.3:{SERVER} 10.244.0.2"


def test_from_add_to_del(unstarted: DaemonProcess, pods: tuple[str, str]) -> None:
    """Redirected with the daemon and without it; the tools say so; DEL leaves nothing in the namespace."""
    node = unstarted
    conf = with_sidecar(node)
    added = start(node, pods, conf)
    assert ask(pods[0]) == PROXIED
    assert node.cni("CHECK", "pod0", pods[0], added)[0] == 0
    body = {"from": "10.244.0.2", "to": "10.244.0.3", "port": SERVER}
    (note,) = node.request("POST", "/v2/switch/trace", body)["notes"]
    assert "the sender's own stack hands a new connection like this to port 15001" in note
    layer = node.request("GET", "/v2/switch/layers?endpoint=10.244.0.2")["layers"][0]
    assert [rule["name"] for rule in layer["groups"][0]["rules"]] == ["policy 2"]
    node.stop(signal.SIGKILL)
    assert ask(pods[0]) == PROXIED
    node.start()
    assert node.differences() == []
    in_namespace(pods[0], "nft", "flush", "ruleset")
    assert [item["kind"] for item in node.differences()] == ["pod"]
    assert node.cni("CHECK", "pod0", pods[0], added)[0] != 0
    node.stop()
    node.start()
    assert node.differences() == []
    assert ask(pods[0]) == PROXIED
    node.delete("pod0", pods[0], conf)
    assert tables(pods[0]) == []


@pytest.mark.parametrize("moment", ["hand connections", "change interface lo"])
def test_killed_in_the_middle_of_a_change(
    unstarted: DaemonProcess, pods: tuple[str, str], moment: str
) -> None:
    """Before the rules are written, and after it, when the store knows nothing of them yet."""
    node = unstarted
    start(node, pods, node.conf())
    (endpoint,) = (
        item for item in node.endpoints() if item["IpConfigurations"][0]["IpAddress"] == "10.244.0.2"
    )
    node.stop()
    node.start({"SAMEWIRE_TEST_FAULT": f"{moment}|kill|1"})
    add = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [SIDECAR]}}
    with pytest.raises((OSError, IndexError)):
        node.ask("POST", f"/v2/endpoints/{endpoint['ID']}", add)
    node.wait_dead()
    node.start()
    assert node.differences() == []
    assert ask(pods[0]) == "server - 10.244.0.2"
    node.request("POST", f"/v2/endpoints/{endpoint['ID']}", add)
    assert ask(pods[0]) == PROXIED
