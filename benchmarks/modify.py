"""What one policy more or less costs the daemon, and one member of a load balancer: among many, beside the same among
few, in turns.

CPU time of the daemon from request to answer, over the API. The answer says that it is done, as HcnModify* do
(``Prefer: return=minimal``), and is not the whole object once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import peers
from benchmarks.case import Case, Comparison, Context, Outcome
from benchmarks.netns import Sandbox
from benchmarks.samewire_node import SamewireNode, network, outbound_nat
from benchmarks.stats import median_of

Json = dict[str, Any]

FEW: Final = 100
WARM_UP: Final = 3
TURNS, QUICK_TURNS = 20, 5
CHUNK: Final = 500
FIRST_OF_FEW: Final = 30000  # no two objects map one port of the node
MANY_MEMBERS: Final = 1000
NETWORKS: Final = (
    ("few", "10.240.0.0/16", "10.240.0.1", 4096),
    ("many", "10.241.0.0/16", "10.241.0.1", 4097),
)


@dataclass(frozen=True)
class Kind:
    """A type of policies: of which objects, how many of them are many, and how the n-th one is made. ``one``: what is
    more or less, where that is no policy like the others; ``title`` says what it is.
    """

    name: str
    of: str
    many: int
    settings: Callable[[int], Any]
    title: str = ""
    one: Json | None = None

    def policy(self, number: int) -> Any:
        """One policy."""
        return {"Type": self.name, "Settings": self.settings(number)}

    def body(self, how: str, policies: list[Any]) -> Json:
        """The request that adds or removes some."""
        return {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": policies}}

    def policies(self, numbers: range) -> list[Any]:
        """The others."""
        return [self.policy(number) for number in numbers]

    def among(self, size: int) -> str:
        """What the figure for a list of that length is called."""
        return f"{self.title or self.name} among {size:,}"


class Tier(Kind):
    """The rules of one tier."""

    def policies(self, numbers: range) -> list[Any]:
        """One policy."""
        return [_tier(1, *map(self.settings, numbers))]


class Member(Kind):
    """The endpoints of a load balancer, by their ids."""

    def policy(self, number: int) -> Any:
        return self.settings(number)

    def body(self, how: str, policies: list[Any]) -> Json:
        settings = {"HostComputeEndpoints": policies}
        return {"ResourceType": "LoadBalancer", "RequestType": how, "Settings": settings}


def _prefix(first: int, number: int) -> str:
    return f"{first + number // 65536}.{number // 256 % 256}.{number % 256}"


def _rule(number: int) -> Json:
    ends = {"RemoteAddresses": f"{_prefix(100, number)}.0/24", "RemotePorts": str(1000 + number)}
    return {"Action": "Allow", "Direction": "Out", "Protocols": "6", "Priority": 100, **ends}


def _tier(order: int, *rules: Json) -> Json:
    made = [{**rule, "TierAclRuleAction": rule["Action"]} for rule in rules]
    for rule in made:
        del rule["Action"], rule["Direction"]
    return {"Type": "TierAcl", "Settings": {"Direction": "Out", "Order": order, "TierAclRules": made}}


def _remote(number: int) -> Json:
    provider = {"ProviderAddress": f"{_prefix(172, number)}.7", "IsolationId": 4096}
    router = f"0E-2A-00-00-{number // 256:02X}-{number % 256:02X}"
    prefix = f"{_prefix(100, number)}.0/24"
    return {"DestinationPrefix": prefix, "DistributedRouterMacAddress": router, **provider}


def _set(number: int) -> Json:
    members = ",".join(f"{_prefix(100, number)}.{host}" for host in (1, 2))
    return {"Id": f"set-{number}", "Name": f"set-{number}", "PolicyType": "IPSET", "Values": members}


def _mapping(number: int) -> Json:
    return {"Protocol": 6, "InternalPort": 80, "ExternalPort": 10000 + number}


def _route(number: int) -> Json:
    return {"DestinationPrefix": f"{_prefix(100, number)}.0/24", "NeedEncap": False}


def _endpoint_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012X}"


ANYTHING: Final = {"Action": "Block", "Direction": "Out", "Priority": 100}
FIRST: Final = {**_rule(50000), "Priority": 1}

KINDS: Final = (
    Kind("ACL", "endpoints", 4000, _rule),
    Kind("ACL", "endpoints", 4000, _rule, "an ACL for anything", {"Type": "ACL", "Settings": ANYTHING}),
    Kind("ACL", "endpoints", 3000, _rule, "an ACL before all others", {"Type": "ACL", "Settings": FIRST}),
    Kind("ACL", "endpoints", 3000, _rule, "a TierAcl before ACLs", _tier(1, _rule(50000))),
    Tier("TierAcl", "endpoints", 1000, _rule, "a TierAcl behind a tier", _tier(2, _rule(50000))),
    Kind("NetworkACL", "networks", 1000, _rule),
    Kind("RemoteSubnetRoute", "networks", 5000, _remote),
    Kind("SetPolicy", "networks", 1000, _set),
    Kind("PortMapping", "endpoints", 1000, _mapping),
    Kind("SDNRoute", "endpoints", 1000, _route),
    Kind("SDNRoute", "networks", 1000, _route, "an SDNRoute of a network"),
    Member("member", "loadbalancers", MANY_MEMBERS, _endpoint_id),
)


class Modify(Case):
    """One daemon with two networks and a pod in each: the one has few policies of a type, the other many."""

    name = "modify"

    def __init__(self, comparisons: tuple[Comparison, ...]) -> None:
        self.comparisons = comparisons

    def steps(self, context: Context) -> int:
        return len(KINDS)

    def run(self, context: Context) -> Outcome:
        outcome = Outcome()
        with Sandbox("modify") as sandbox:
            node, _ = peers.outside_wire(sandbox)
            daemon = SamewireNode(sandbox.tmp, "a", node, "eth0")
            try:
                daemon.start()
                objects = _objects(daemon, sandbox)
                for kind in KINDS:
                    context.progress.step(f"modify: {kind.among(kind.many)}")
                    try:
                        _measure(kind, daemon, objects[kind.of], context, outcome)
                    except Exception as error:  # reported beside the other kinds' figures
                        outcome.fail(kind.among(kind.many), error)
            finally:
                daemon.stop()
        return outcome


def _objects(daemon: SamewireNode, sandbox: Sandbox) -> dict[str, tuple[str, str]]:
    """The paths of the objects that get few policies, and many."""
    paths: dict[str, list[str]] = {"networks": [], "endpoints": [], "loadbalancers": []}
    firsts = (range(FIRST_OF_FEW, FIRST_OF_FEW + FEW + 1), range(MANY_MEMBERS + 1))
    for (name, subnet, gateway, vni), numbers in zip(NETWORKS, firsts, strict=True):
        made = daemon.create_network(network(name, "Overlay", subnet, gateway, vni=vni))
        conf = daemon.write_conf(name, {"subnet": subnet}, [outbound_nat(subnet)])
        endpoint = daemon.endpoint_of(daemon.add(sandbox.netns(name), conf))
        paths["networks"].append(f"/v2/networks/{made['ID']}")
        paths["endpoints"].append(f"/v2/endpoints/{endpoint['ID']}")
        paths["loadbalancers"].append(f"/v2/loadbalancers/{_balancer(daemon, made['ID'], subnet, numbers)}")
    return {kind: (few, many) for kind, (few, many) in paths.items()}


def _balancer(daemon: SamewireNode, network_id: str, subnet: str, numbers: range) -> str:
    """A load balancer without members, and the endpoints elsewhere that are to be; returns its id."""
    first, second = subnet.split(".")[:2]
    for number in numbers:
        address = f"{first}.{second}.{number // 256 + 1}.{number % 256}"
        configuration = {"IpAddress": address, "PrefixLength": 16}
        mac = f"02-11-00-00-{number // 256:02X}-{number % 256:02X}"
        wanted = {"ID": _endpoint_id(number), "HostComputeNetwork": network_id, "Flags": 1}
        wanted |= {"MacAddress": mac, "IpConfigurations": [configuration]}
        daemon.request("POST", "/v2/endpoints", wanted)
    mapping = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 80}
    wanted = {"HostComputeNetwork": network_id, "FrontendVIPs": [f"10.96.0.{second[-1]}"]}
    return str(daemon.request("POST", "/v2/loadbalancers", {**wanted, "PortMappings": [mapping]})["ID"])


def _measure(
    kind: Kind, daemon: SamewireNode, objects: tuple[str, str], context: Context, outcome: Outcome
) -> None:
    few, many = objects
    numbers = {few: range(FIRST_OF_FEW, FIRST_OF_FEW + FEW), many: range(kind.many)}
    for path in objects:
        _all(kind, daemon, path, "Add", numbers[path])
    samples: dict[str, list[float]] = {path: [] for path in objects}
    context.gate.wait()
    for turn in range(WARM_UP + (QUICK_TURNS if context.quick else TURNS)):
        for path in objects if turn % 2 else reversed(objects):
            cost_ms = _more_and_less(kind, daemon, path, numbers[path], turn)
            if turn >= WARM_UP:
                samples[path].append(cost_ms)
    for path in objects:
        name = kind.among(len(numbers[path]))
        outcome.measured[name, "modify_cpu"] = median_of(samples[path])
        outcome.samples[name, "modify_cpu"] = samples[path]
        _all(kind, daemon, path, "Remove", numbers[path])


def _more_and_less(kind: Kind, daemon: SamewireNode, path: str, numbers: range, turn: int) -> float:
    """Milliseconds of CPU of a request: the mean of one that adds a policy, and one that takes any away."""
    more = kind.one or kind.policy(numbers.stop)
    less = kind.one or kind.policy(numbers[(turn + 1) * len(numbers) // 32])
    before_s = daemon.precise_cpu_s()
    _request(kind, daemon, path, "Add", [more])
    _request(kind, daemon, path, "Remove", [less])
    cost_ms = (daemon.precise_cpu_s() - before_s) * 1e3 / 2
    if less != more:
        _request(kind, daemon, path, "Add", [less])
        _request(kind, daemon, path, "Remove", [more])
    return cost_ms


def _all(kind: Kind, daemon: SamewireNode, path: str, how: str, numbers: range) -> None:
    for policies in _chunks(kind.policies(numbers)):
        _request(kind, daemon, path, how, policies)


def _chunks(policies: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(policies), CHUNK):
        yield policies[start : start + CHUNK]


def _request(kind: Kind, daemon: SamewireNode, path: str, how: str, policies: list[Any]) -> None:
    daemon.request("POST", path, kind.body(how, policies), {"Prefer": "return=minimal"})
