"""Endpoints of Services without a selector, as EndpointSlices: as Kubernetes mirrors them (pure)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from samewire.kube.base import KubeObject
from samewire.kube.model import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Family,
    LabelledMetadata,
    SliceLabels,
    SliceMetadata,
    TargetRef,
)

_SKIP: Final = "endpointslice.kubernetes.io/skip-mirror"
_FAMILIES: Final[dict[int, Family]] = {4: "IPv4", 6: "IPv6"}


class EndpointAddress(Struct, frozen=True, rename="camel"):
    """One address."""

    ip: str
    node_name: str | None = None
    target_ref: TargetRef | None = None


class EndpointSubset(Struct, frozen=True, rename="camel"):
    """Addresses that have the same ports."""

    addresses: tuple[EndpointAddress, ...] = ()
    not_ready_addresses: tuple[EndpointAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Endpoints(KubeObject[LabelledMetadata], frozen=True):
    """v1 Endpoints."""

    metadata: LabelledMetadata = LabelledMetadata()
    subsets: tuple[EndpointSubset, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses, ready or not."""
        return tuple(
            one.ip for subset in self.subsets for one in (*subset.addresses, *subset.not_ready_addresses)
        )


def mirror(endpoints: Endpoints) -> Iterator[EndpointSlice]:
    """The slices of a Service without a selector, one for each subset and family."""
    namespace, name = endpoints.key
    if endpoints.metadata.labels.get(_SKIP) == "true":
        return
    for number, subset in enumerate(endpoints.subsets):
        for version, family in _FAMILIES.items():
            found = tuple(
                Endpoint((one.ip,), EndpointConditions(ready), one.node_name, target_ref=one.target_ref)
                for ready, some in ((True, subset.addresses), (False, subset.not_ready_addresses))
                for one in some
                if ipaddress.ip_address(one.ip).version == version
            )
            if found:
                yield EndpointSlice(
                    metadata=SliceMetadata(
                        name=f"{name}-mirrored-{number}-{version}",
                        namespace=namespace,
                        labels=SliceLabels(service_name=name),
                    ),
                    address_type=family,
                    endpoints=found,
                    ports=subset.ports,
                )
