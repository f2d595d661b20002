"""Everything that people call a pod leads to its endpoint."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from samewire.errors import Conflict, NotFound
from samewire.hcn.policies import PortName
from samewire.hcn.schema import Endpoint, Kind, Namespace
from samewire.hcn.state import State
from samewire.hcn.switch import Change
from samewire.trace.context import PortInfo, describe_endpoints
from samewire.trace.names import endpoint_of_port, find_endpoint
from tests.support.tools import CLIENT, INFOS, INTERFACES, NETWORK, WEB, WEB_ID, WEB_PORT


@pytest.mark.parametrize(
    "query",
    [
        WEB_ID,
        WEB_ID.lower(),
        "shop/web-0",
        "SHOP/Web-0",
        "web-0",
        "10.244.1.5",
        "fd00:244:1::5",
        "FD00:244:1:0:0:0:0:5",
        "c0ffee0123456789",
        "c0ffee",
        INTERFACES[WEB_PORT],
        str(WEB_PORT),
        " web-0 ",
    ],
)
def test_names(query: str) -> None:
    assert find_endpoint(INFOS, query).id == WEB_ID


def test_the_name_that_a_policy_gives_the_port() -> None:
    named = replace(WEB, policies=(PortName(name="Front"),))
    state = State()
    state.apply([Change(Kind.ENDPOINT, WEB_ID, None, named)])
    (info,) = describe_endpoints(state, {WEB_ID: PortInfo(WEB_PORT, "sw1")})
    assert info.port_name == "Front"
    assert find_endpoint([*INFOS[1:], info], "front") is info
    (away,) = describe_endpoints(state, {})
    with pytest.raises(NotFound):
        find_endpoint([away], "front")


@pytest.mark.parametrize("query", ["", "web", "0", "10.244.1.50", "c0ff", "2B3C4D", "shop/"])
def test_unknown(query: str) -> None:
    with pytest.raises(NotFound):
        find_endpoint(INFOS, query)


def test_an_ambiguous_beginning_is_refused() -> None:
    with pytest.raises(Conflict, match=r"shop/web-0 .* shop/client .* use the ID"):
        find_endpoint(INFOS, "1A2B3C4D")


def test_tenants_with_one_address() -> None:
    other = replace(INFOS[0], id="X", name="blue/web-0", network="blue", port=99, host_interface="sw99")
    with pytest.raises(Conflict, match="blue"):
        find_endpoint([*INFOS, other], "10.244.1.5")


def test_local_before_remote() -> None:
    stale = replace(INFOS[2], addresses=("10.244.1.5",))
    assert find_endpoint([stale, *INFOS[:2]], "10.244.1.5").id == WEB_ID


def test_ports_lead_back() -> None:
    found = endpoint_of_port(INFOS, WEB_PORT)
    assert found is not None
    assert found.id == WEB_ID
    assert endpoint_of_port(INFOS, 2) is None
    assert endpoint_of_port(INFOS, 0) is None


def test_described_from_the_store() -> None:
    state = State()
    space = Namespace(id="9A000000-0000-4000-8000-000000000001", netns_path="/run/netns/web")
    web = replace(WEB, name="shop/web-0", network_id=NETWORK.id, namespace_id=space.id, interface_name="eth0")
    client: Endpoint = replace(CLIENT, network_id=NETWORK.id)
    changes = [
        Change(Kind.NETWORK, NETWORK.id, None, NETWORK),
        Change(Kind.NAMESPACE, space.id, None, space),
        Change(Kind.ENDPOINT, web.id, None, web),
        Change(Kind.ENDPOINT, client.id, None, client),
    ]
    state.apply(changes)
    first, second = describe_endpoints(state, {WEB_ID: PortInfo(WEB_PORT, INTERFACES[WEB_PORT])})
    assert first == replace(INFOS[0], container_id="")
    assert (second.port, second.label, second.network, second.netns_path) == (0, CLIENT.id, "pods", "")
