"""What one packet costs in the switch, by BPF_PROG_TEST_RUN: the program alone, without delivery.

``bpftool prog run`` does it on the very program that is attached to a pod's port; the context names the port.
"""

from __future__ import annotations

import ipaddress
import json
import re
import struct
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import msgspec

from benchmarks import netns
from benchmarks.case import Case, Comparison, Context, Outcome
from benchmarks.errors import BenchError
from benchmarks.ours import NAME, SameNode, pod_policies
from benchmarks.peers import CLUSTER
from benchmarks.samewire_node import Json
from benchmarks.stats import median_of

ROUNDS = 10  # in turns: a virtual CPU is half as fast again for seconds, and then is not
FIRST_PACKETS = 10
LATER_REPEAT = 200_000
MANY_RULES = 64
MANY_RULES_NAME = f"samewire, {MANY_RULES} more rules"
FIRST_SOURCE_PORT = 30000
_TC_ACT_REDIRECT = 7
_IFINDEX_OFFSET = 40  # of ifindex in struct __sk_buff (linux/bpf.h)


class _TestRun(msgspec.Struct):
    retval: int
    duration: int


def attached_program(node: str, ifname: str) -> int:
    """The id of the first program on an interface's clsact ingress. Raises ``BenchError`` if none is."""
    shown = netns.inside(node, "tc", "filter", "show", "dev", ifname, "ingress")
    found = re.search(r"\bid (\d+)\b", shown)
    if not found:
        raise BenchError(f"no program on the ingress of {ifname}: {shown.strip() or 'no filter'}")
    return int(found[1])


def host_end(node: str, pod: str) -> tuple[str, int]:
    """Name and index of the node's end of a pod's veth."""
    index: int = json.loads(netns.ip(pod, "-j", "link", "show", "dev", "eth0"))[0]["link_index"]
    for link in json.loads(netns.ip(node, "-j", "link", "show")):
        if link["ifindex"] == index:
            return str(link["ifname"]), index
    raise BenchError(f"the other end of {pod}'s eth0 is not in {node}")


def udp_packet(macs: tuple[str, str], ips: tuple[str, str], ports: tuple[int, int]) -> bytes:
    """A one-byte IPv4 UDP frame (source, destination each) without UDP checksum, as RFC 768 allows."""
    ethernet = bytes.fromhex((macs[1] + macs[0]).replace(":", "")) + b"\x08\x00"
    udp = struct.pack("!HHHH", *ports, 9, 0) + b"x"
    addresses = b"".join(ipaddress.IPv4Address(ip).packed for ip in ips)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0) + addresses
    return ethernet + header[:10] + _checksum(header) + header[12:] + udp


def _checksum(header: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def run_program(
    node: str, program: int, ifindex: int, packet: bytes, tmp: Path, repeat: int = 1
) -> tuple[int, int]:
    """Run a loaded tc program on a packet as if it came from that interface of the node.

    Returns its verdict (TC_ACT_*) and the mean time of one run in ns. What the program writes to its maps is
    really written. Raises ``BenchError``.
    """
    (tmp / "packet").write_bytes(packet)
    (tmp / "context").write_bytes(struct.pack(f"<{_IFINDEX_OFFSET}xI", ifindex))
    said = netns.inside(
        node,
        *["bpftool", "-j", "prog", "run", "id", str(program), "data_in", str(tmp / "packet")],
        *["ctx_in", str(tmp / "context"), "repeat", str(repeat)],
    )
    result = msgspec.json.decode(said, type=_TestRun)
    return result.retval, result.duration


def extra_rules(count: int) -> list[Json]:
    """Block rules that match nothing here and are asked before the ones that let the packet pass."""
    settings = {
        "Action": "Block",
        "Direction": "Out",
        "RuleType": "Switch",
        "Protocols": "17",
        "Priority": 100,
    }
    return [
        {"Type": "ACL", "Settings": {**settings, "RemoteAddresses": f"203.0.113.{index}/32"}}
        for index in range(count)
    ]


class PacketCost(Case):
    """First and later packets of a UDP flow between two pods of a node, with few rules and with many."""

    name = "packet-cost"

    def __init__(self, comparisons: tuple[Comparison, ...]) -> None:
        self.comparisons = comparisons

    def steps(self, context: Context) -> int:
        return 2

    def run(self, context: Context) -> Outcome:
        outcome = Outcome()
        scenario = SameNode()
        try:
            context.progress.step("packet-cost: set-up")
            ends = scenario.setup()
            daemon = scenario.nodes[0]
            # The switch writes the gateway's MAC as the source. A pod that has that very MAC itself can send the
            # same packet again and again: a repeated test run goes on with what the last run left.
            client = scenario.sandbox.netns("repeater")
            gateway_mac = netns.mac(daemon.node, host_end(daemon.node, ends.client)[0])
            client_ip = daemon.add(client, scenario.conf, gateway_mac)
            pods = (client, ends.server), (client_ip, ends.address)
            few = pod_policies(CLUSTER)
            policies = {NAME: few, MANY_RULES_NAME: [*extra_rules(MANY_RULES), *few]}
            context.progress.step("packet-cost: few rules and many, in turns")
            self._measure(outcome, scenario, policies, *pods)
        except Exception as error:  # reported beside the other cases' figures
            outcome.fail(NAME, error)
        finally:
            scenario.teardown()
        return outcome

    def _measure(
        self,
        outcome: Outcome,
        scenario: SameNode,
        policies: Mapping[str, list[Json]],
        pods: tuple[str, str],
        ips: tuple[str, str],
    ) -> None:
        daemon, tmp = scenario.nodes[0], scenario.sandbox.tmp
        ifname, ifindex = host_end(daemon.node, pods[0])
        program = attached_program(daemon.node, ifname)
        macs = (netns.mac(pods[0], "eth0"), netns.mac(pods[1], "eth0"))
        endpoint = daemon.endpoint_of(ips[0])["ID"]
        first: dict[str, list[float]] = {subject: [] for subject in policies}
        later: dict[str, list[float]] = {subject: [] for subject in policies}
        source_ports = count(FIRST_SOURCE_PORT)
        for _ in range(ROUNDS):
            for subject, wanted in policies.items():
                daemon.set_endpoint_policies(endpoint, wanted)
                for _ in range(FIRST_PACKETS):
                    packet = udp_packet(macs, ips, (next(source_ports), 9))
                    first[subject].append(self._pass(daemon.node, program, ifindex, packet, tmp, 1))
                later[subject].append(self._pass(daemon.node, program, ifindex, packet, tmp, LATER_REPEAT))
        for subject in policies:
            outcome.measured[subject, "first_packet"] = median_of(first[subject])
            outcome.measured[subject, "later_packet"] = median_of(later[subject])

    @staticmethod
    def _pass(node: str, program: int, ifindex: int, packet: bytes, tmp: Path, repeat: int) -> float:
        verdict, duration_ns = run_program(node, program, ifindex, packet, tmp, repeat)
        if verdict != _TC_ACT_REDIRECT:
            raise BenchError(f"the switch answered {verdict} and not 'redirect' to the test packet")
        return float(duration_ns)
