"""Endpoint policies of an attachment, in HCN v2 form: from the configuration, and made of runtimeConfig.

Every policy is read and checked by the HCN codec here, before anything is done, so that a fault is an
INVALID_CONFIG error that names its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import Fields, address, family
from samewire.hcn.codec import decode_policy
from samewire.hcn.errors import HcnError
from samewire.hcn.normalise_policies import Scope, check_policies
from samewire.hcn.policies import QOS, NatFlags, OutBoundNAT, Policy, PortMapping, nat_families

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
MAX_PORT = 2**16 - 1
MAX_BITS = 2**63 - 1
ANY_ADDRESS = frozenset({"", "0.0.0.0", "::"})

NO_BURST = 2**32 - 1
"""The burst in bits that runtimes send for "not limited" (the CRI has no burst); the rate alone counts then."""

_SHAPE = frozenset({"type", "settings"})


class HostPort(msgspec.Struct, frozen=True):
    """An entry of the portMappings capability; ``host_ip`` "" = every address of the node."""

    host_port: int
    container_port: int
    protocol: int
    host_ip: str


def decode_policies(conf: Fields) -> tuple[Policy, ...]:
    """Return the EndpointPolicy entries of a configuration's ``policies``. Raises CniError(INVALID_CONFIG).

    As the Windows plugins do, entries of other names are passed over.
    """
    found = []
    for entry in conf.objects("policies"):
        if entry.required_text("name").lower() != "endpointpolicy":
            continue
        value = entry.child("value")
        if not {name.lower() for name in value.value} <= _SHAPE:
            value.fail("Type", 'expected {"Type": ..., "Settings": {...}}: flat (v1) policies are not taken')
        with _faults_of(value.path):
            found.append(decode_policy(value.value, "$"))
    return checked(found, conf.key("policies"))


def checked(policies: Iterable[Policy], key: str) -> tuple[Policy, ...]:
    """Return the canonical form of endpoint policies. Raises CniError(INVALID_CONFIG)."""
    with _faults_of(key):
        return check_policies(policies, Scope.ENDPOINT, "$")


def decode_host_ports(runtime: Fields) -> tuple[HostPort, ...]:
    """Return the portMappings of a runtimeConfig. Raises CniError(INVALID_CONFIG)."""
    return tuple(_host_port(item) for item in runtime.objects("portMappings"))


def port_mappings(ports: Iterable[HostPort], families: Sequence[int]) -> list[Policy]:
    """Return the PortMapping policies of a container with addresses of these families.

    A port on every address of the node is mapped once for each family.
    """
    found: list[Policy] = []
    for port in ports:
        wanted = [family(port.host_ip)] if port.host_ip else families
        for version in families:
            if version not in wanted:
                continue
            vip = "" if port.host_ip in ANY_ADDRESS else port.host_ip
            flags = NatFlags.LOCAL_ROUTED_VIP | (NatFlags.IPV6 if version == 6 else 0)
            found.append(
                PortMapping(
                    protocol=port.protocol,
                    internal_port=port.container_port,
                    external_port=port.host_port,
                    vip=vip,
                    flags=int(flags),
                )
            )
    return found


def decode_bandwidth(runtime: Fields) -> QOS | None:
    """Return the QOS policy of a runtimeConfig's ``bandwidth`` (bits a second, bits), None without caps.

    "Ingress" is what comes to the container, as in the bandwidth plugin. Raises CniError(INVALID_CONFIG).
    """
    bandwidth = runtime.child("bandwidth")
    (in_rate, in_burst), (out_rate, out_burst) = (_cap(bandwidth, side) for side in ("ingress", "egress"))
    if not in_rate and not out_rate:
        return None
    return QOS(
        maximum_outgoing_bandwidth_in_bytes=out_rate,
        maximum_incoming_bandwidth_in_bytes=in_rate,
        maximum_outgoing_burst_in_bytes=out_burst,
        maximum_incoming_burst_in_bytes=in_burst,
    )


def masqueraded(policies: Iterable[Policy], prefixes: Sequence[str]) -> tuple[Policy, ...]:
    """Return policies under which all leaves with the node's address but what goes to ``prefixes``.

    HNS asks the OutBoundNAT policies in turn and the first that does not except a destination decides: so the
    prefixes join the exceptions of every policy that has no Destinations, and a family without such a policy
    gets one.
    """
    result: list[Policy] = []
    covered: set[int] = set()
    for policy in policies:
        if isinstance(policy, OutBoundNAT) and not policy.destinations:
            families = nat_families(policy)
            covered |= families
            more = tuple(p for p in prefixes if family(p) in families and p not in policy.exceptions)
            policy = msgspec.structs.replace(policy, exceptions=(*policy.exceptions, *more))
        result.append(policy)
    rest = tuple(prefix for prefix in prefixes if family(prefix) not in covered)
    if rest:
        result.append(OutBoundNAT(exceptions=rest))
    return tuple(result)


class _faults_of:
    """Turns the HcnError of a policy under a key into the CniError of the configuration."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, HcnError):
            message = f"{self._key}{error.message.removeprefix('$')}"
            raise CniError(CniCode.INVALID_CONFIG, message, error.code.name) from None


def _host_port(fields: Fields) -> HostPort:
    ports = [fields.number(name, MAX_PORT) for name in ("hostPort", "containerPort")]
    for name, port in zip(("hostPort", "containerPort"), ports, strict=True):
        if not port:
            fields.fail(name, f"must be a port from 1 to {MAX_PORT}")
    name = fields.text("protocol").lower() or "tcp"
    if name not in PROTOCOLS:
        fields.fail("protocol", f"{name[:64]!r} cannot be mapped; known: {', '.join(PROTOCOLS)}")
    return HostPort(ports[0], ports[1], PROTOCOLS[name], fields.parsed("hostIP", address, ""))


def _cap(fields: Fields, side: str) -> tuple[int, int]:
    """Return the rate in bytes a second and the burst in bytes of one direction; 0 = none."""
    rate, burst = (fields.number(f"{side}{what}", MAX_BITS) for what in ("Rate", "Burst"))
    if rate and not burst:
        fields.fail(f"{side}Burst", f"must be given with {side}Rate")
    if burst and not rate:
        fields.fail(f"{side}Rate", f"must be given with {side}Burst")
    if 0 < rate < 8:
        fields.fail(f"{side}Rate", f"must be at least 8 bits per second, got {rate}")
    return rate // 8, 0 if burst >= NO_BURST else burst // 8
