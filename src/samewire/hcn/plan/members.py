"""Members of load balancers that go."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import Endpoint, Kind
from samewire.hcn.state import View
from samewire.hcn.switch import Change


def without_endpoints(view: View, going: Mapping[str, Endpoint]) -> list[Change]:
    """Plan what the deletion of endpoints means for load balancers: they lose those members."""
    named = {
        value.id: value for endpoint_id in going for value in view.load_balancers_of_endpoint(endpoint_id)
    }
    return [
        Change(Kind.LOADBALANCER, value.id, value, after)
        for value in named.values()
        if (after := _without(value, going)) != value
    ]


def _without(value: LoadBalancer, going: Mapping[str, Endpoint]) -> LoadBalancer:
    def rest(ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(endpoint_id for endpoint_id in ids if endpoint_id not in going)

    return msgspec.structs.replace(
        value,
        endpoint_ids=rest(value.endpoint_ids),
        local_endpoint_ids=rest(value.local_endpoint_ids),
        draining_endpoint_ids=rest(value.draining_endpoint_ids),
    )
