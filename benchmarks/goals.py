"""The cases and their goals, in one place: what is compared with what, and the least ratio that passes.

A ratio counts how many times better the subject is (more throughput, less time), so that at least the goal is
always a pass. A goal against a fixed limit has the peer "limit".
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import ours, peers
from benchmarks.case import Case, Comparison
from benchmarks.cni import Cni
from benchmarks.datapath import Datapath
from benchmarks.kube_proxy import KubeProxyRules
from benchmarks.modify import FEW, KINDS, Modify
from benchmarks.nodeport import Direct, DirectStraight, Translated, TranslatedStraight
from benchmarks.ours import NAME
from benchmarks.packet_cost import MANY_RULES_NAME, PacketCost
from benchmarks.scale import KERNEL_ALONE, Scale
from benchmarks.scenario import Scenario
from benchmarks.services import (
    ClusterIP,
    EpollRelay,
    ServiceScale,
    StraightBeside,
    UserMode,
    clusterip_name,
    size_name,
    straight_name,
)

MODES = ("stream", "rr", "udp_rr", "crr")
LIMIT = "limit"
SERVICES = (1, 1_000, 10_000, 50_000)

# "Independent of the number of rules": within this of the figure with few.
RULES_TOLERANCE = 0.9
# The same of what a policy more costs: walks at the speed of C, over a few thousand references, are let pass.
MODIFY_TOLERANCE = 0.67


def _context(modes: tuple[str, ...], limit: str, *names: str) -> tuple[Comparison, ...]:
    """Lines without a goal: every scenario beside the limit of the topology."""
    return tuple(Comparison(mode, name, limit) for name in names for mode in modes)


def _inserts() -> Comparison:
    return Comparison("flow_inserts", NAME)


def _same_node() -> Datapath:
    raw, stateless = peers.RawVeth.name, peers.Stateless.name
    bridge, masq = peers.BridgePods.name, peers.BridgeMasqPods.name
    of_stateless = {"stream": 0.95, "rr": 0.95, "udp_rr": 0.93, "crr": 0.85}
    comparisons = (
        *(Comparison(mode, NAME, stateless, goal) for mode, goal in of_stateless.items()),
        *(Comparison(mode, NAME, masq, 1.0) for mode in MODES),
        *(Comparison(mode, NAME, bridge) for mode in MODES),
        _inserts(),
        *_context(MODES, raw, NAME, stateless, bridge, masq),
    )
    scenarios = (peers.RawVeth, peers.Stateless, ours.SameNode, peers.BridgePods, peers.BridgeMasqPods)
    return Datapath("same-node", scenarios, MODES, comparisons)


def _overlay() -> Datapath:
    raw, vxlan = peers.RawVeth.name, peers.KernelVxlan.name
    comparisons = (
        Comparison("stream", NAME, vxlan, 0.95),
        Comparison("rr", NAME, vxlan, 1.15, 1.3),
        Comparison("udp_rr", NAME, vxlan, 1.15, 1.3),
        Comparison("crr", NAME, vxlan, 1.0, 1.3),
        _inserts(),
        *_context(MODES, raw, NAME, vxlan),
    )
    return Datapath("overlay", (peers.RawVeth, ours.CrossNodeOverlay, peers.KernelVxlan), MODES, comparisons)


def _l2bridge() -> Datapath:
    raw, routed = peers.RawVeth.name, peers.KernelHostGateway.name
    comparisons = (
        Comparison("stream", NAME, routed, 1.0),
        Comparison("rr", NAME, routed, 1.15, 1.3),
        Comparison("udp_rr", NAME, routed, 1.15, 1.3),
        Comparison("crr", NAME, routed, 1.0, 1.3),
        _inserts(),
        *_context(MODES, raw, NAME, routed),
    )
    scenarios = (peers.RawVeth, ours.CrossNodeL2Bridge, peers.KernelHostGateway)
    return Datapath("l2bridge", scenarios, MODES, comparisons)


def _outside() -> Datapath:
    raw, masq, modes = peers.RawVeth.name, peers.KernelMasquerade.name, ("rr", "crr")
    least = peers.LeastPrograms.name
    comparisons = (
        *(Comparison(mode, NAME, masq, 1.3) for mode in modes),
        *(Comparison(mode, least, masq) for mode in modes),  # more than this no switch can reach
        _inserts(),
        *_context(modes, raw, NAME, least, masq),
    )
    scenarios = (peers.RawVeth, ours.Outside, peers.LeastPrograms, peers.KernelMasquerade)
    return Datapath("outside", scenarios, modes, comparisons)


def _services() -> Datapath:
    straight = peers.BridgePods.name
    own = [make for count in SERVICES for make in _service_and_straight(count)]
    of_straight = {"stream": 0.99, "rr": 0.98, "udp_rr": 0.98, "crr": 0.93}
    proxy = KubeProxyRules.name
    comparisons = tuple(
        line
        for count in SERVICES
        for line in (
            *(
                Comparison(mode, clusterip_name(count), straight_name(count), goal)
                for mode, goal in of_straight.items()
            ),
            *(Comparison(mode, clusterip_name(count), proxy, 1.4) for mode in ("rr", "crr")),
        )
    )
    least = peers.Stateless.name
    kube_proxy = (
        *(Comparison(mode, least, proxy) for mode in ("rr", "crr")),  # more than this no switch can reach
        *(Comparison(mode, proxy, straight) for mode in MODES),
    )
    scenarios = (*own, peers.Stateless, peers.BridgePods, KubeProxyRules)
    return Datapath("services", scenarios, MODES, (*comparisons, *kube_proxy))


def _service_and_straight(count: int) -> tuple[Callable[[], Scenario], Callable[[], Scenario]]:
    """A set-up, and the same once more under the server's own address; made in this order."""
    made: list[ClusterIP] = []

    def service() -> Scenario:
        made.append(ClusterIP(count))
        return made[-1]

    return service, lambda: StraightBeside(made[-1])


def _nodeport() -> Datapath:
    """Called from outside, the pod on another node."""
    pairs = ((Translated, TranslatedStraight), (Direct, DirectStraight))
    comparisons = tuple(
        Comparison(mode, own.name, straight.name, 0.9) for own, straight in pairs for mode in MODES
    )
    return Datapath("node-port", [one for pair in pairs for one in pair], MODES, comparisons)


def _relay() -> Datapath:
    """The node holds the gateway's address only on a network with a host port: HostRoute."""
    own, peer, modes = f"{NAME}, user mode", EpollRelay.name, ("stream", "rr", "crr")
    comparisons = (
        Comparison("stream", own, peer, 1.0),
        Comparison("rr", own, peer),
        Comparison("crr", own, peer, 1.0),
        *(Comparison(mode, name, NAME) for name in (own, peer) for mode in modes),
    )
    return Datapath("relay", (ours.SameNode, UserMode, EpollRelay), modes, comparisons)


def _service_scale() -> ServiceScale:
    limits = {
        (1_000, 2): (1.0, 150.0),
        (10_000, 2): (1.0, 150.0),
        (50_000, 2): (5.0, 400.0),
        (5_000, 50): (None, None),
    }
    comparisons: list[Comparison] = []
    for (services, endpoints), (start_s, memory_mb) in limits.items():
        name = size_name(services, endpoints)
        if start_s is None:
            comparisons += [Comparison("service_start", name), Comparison("service_memory", name)]
        else:
            comparisons.append(Comparison("service_start", name, LIMIT, 1.0, limit=start_s))
            comparisons.append(Comparison("service_memory", name, LIMIT, 1.0, limit=memory_mb))
        comparisons.append(Comparison("change_p50", name))
        comparisons.append(Comparison("change_p99", name, LIMIT, 1.0, limit=5.0))
        comparisons.append(Comparison("change_cpu", name, LIMIT, 1.0, limit=2.0))
    storm = size_name(10_000, 2)
    comparisons += [Comparison("storm_lost", storm), Comparison("storm_backlog", storm)]
    return ServiceScale(tuple(limits), tuple(comparisons))


def _cni() -> Cni:
    plain, masq = "bridge", "bridge + ipMasq"
    goals = {
        "add_median": (3.0, 8.0),
        "add_p99": (3.0, 8.0),
        "add_parallel": (4.0, 8.0),
        "del_median": (5.0, 15.0),
        "del_p99": (None, None),
        "del_parallel": (None, None),
    }
    pairs = [
        (metric, peer, goals[metric][index]) for metric in goals for index, peer in enumerate((plain, masq))
    ]
    return Cni(tuple(Comparison(metric, NAME, peer, goal) for metric, peer, goal in pairs))


def _packet_cost() -> PacketCost:
    return PacketCost(
        (
            Comparison("first_packet", NAME),
            Comparison("first_packet", MANY_RULES_NAME, NAME),
            Comparison("later_packet", NAME),
            Comparison("later_packet", MANY_RULES_NAME, NAME, RULES_TOLERANCE),
        )
    )


def _scale() -> Scale:
    return Scale(
        (
            Comparison("cpu", NAME, LIMIT, 1.0, limit=1.0),
            Comparison("adds_cpu", NAME, LIMIT, 1.0, limit=1.0),
            Comparison("start_cpu", NAME),
            Comparison("attach_cpu", NAME, KERNEL_ALONE),
            Comparison("memory", NAME, LIMIT, 1.0, limit=80.0),
        )
    )


def _modify() -> Modify:
    """O(that policy): beside many others at most half as much again as beside few."""
    return Modify(
        tuple(
            Comparison("modify_cpu", kind.among(kind.many), kind.among(FEW), MODIFY_TOLERANCE)
            for kind in KINDS
        )
    )


def cases() -> dict[str, Case]:
    """All cases by name, in the order they run."""
    made: tuple[Case, ...] = (
        _cni(),
        _same_node(),
        _overlay(),
        _l2bridge(),
        _outside(),
        _packet_cost(),
        _scale(),
        _services(),
        _nodeport(),
        _relay(),
        _service_scale(),
        _modify(),
    )
    return {case.name: case for case in made}
