"""The HTTP API over a real unix socket: every route, every kind of error body, who may ask; and its client."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from samewire.errors import (
    Conflict,
    Exhausted,
    Invalid,
    KernelError,
    NotFound,
    SamewireError,
    Unavailable,
    Unsupported,
)
from samewire.hcn import http_guard, notifications
from samewire.hcn.client import AsyncHnsClient, HnsClient
from samewire.hcn.codec import encode as http_body
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.http import MAX_REQUEST_BYTES, HttpServer, classify, make_app
from samewire.hcn.http_answers import PIECE, list_response
from samewire.hcn.modify import PolicySettings
from samewire.hcn.policies import HostRoute, OutBoundNAT
from samewire.hcn.schema import Endpoint, Kind, Namespace
from samewire.hcn.service import HnsService
from samewire.hcn.switch import Change
from tests.support.hcn import FakeSwitch, bridge, overlay

MISSING = "0A1B2C3D-0000-0000-0000-00000000000F"
ERRORS: dict[str, Exception] = {
    "bug": RuntimeError("secret"),
    "kernel": KernelError("create veth", 12),
    "missing": NotFound("table", "x"),
}


async def fail(request: web.Request) -> web.Response:
    raise ERRORS[request.match_info["how"]]


@pytest.fixture
async def path(service: HnsService, tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "samewire.sock"
    server = HttpServer(make_app(service, [web.get("/v2/fail/{how}", fail)], {os.getuid()}), path)
    await server.start()
    yield path
    await server.close()
    assert not path.exists()


@pytest.fixture
def client(path: Path) -> AsyncHnsClient:
    return AsyncHnsClient(path)


async def raw(
    path: Path, method: str, url: str, data: bytes | None = None, **headers: str
) -> tuple[int, Any, str]:
    """Return status, decoded body and content type of a request made by another library than our client."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.request(
            method, f"http://x{url}", data=io.BytesIO(data) if data else data, headers=headers
        ) as response,
    ):
        body = await response.read()
        return response.status, json.loads(body) if body else None, response.content_type


async def test_objects_over_the_wire(client: AsyncHnsClient, path: Path) -> None:
    network = await client.create(Kind.NETWORK, overlay())
    assert network["Type"] == "Overlay"
    assert await client.get(Kind.NETWORK, network["ID"].lower()) == network
    sent = {
        "hostcomputenetwork": network["ID"],
        "policies": [
            {"type": "OUTBOUNDNAT"},
            {"type": "Iov"},
            {"type": "L2Driver"},
        ],
        "X": 1,
    }
    endpoint = await client.create(Kind.ENDPOINT, sent)
    assert endpoint["IpConfigurations"][0]["IpAddress"] == "10.244.1.2"
    assert endpoint["Health"] == {"Extra": {"StoredOnly": ["Iov", "L2Driver"]}}
    assert (endpoint["X"], endpoint["State"]) == (1, 1)
    namespace = await client.create(Kind.NAMESPACE, Namespace(netns_path="/run/netns/a"))
    namespace = await client.modify(
        Kind.NAMESPACE, namespace["ID"], "Endpoint", "Add", {"EndpointId": endpoint["ID"]}
    )
    assert namespace["Resources"] == [{"Type": "Endpoint", "Data": {"Id": endpoint["ID"]}}]
    endpoint = await client.get(Kind.ENDPOINT, endpoint["ID"])
    assert (endpoint["State"], endpoint["HostComputeNamespace"]) == (3, namespace["ID"])
    network = await client.modify(
        Kind.NETWORK, network["ID"], "Policy", "Add", PolicySettings(policies=(HostRoute(),))
    )
    assert {"Type": "HostRoute", "Settings": {}} in network["Policies"]
    assert await client.list(Kind.NETWORK) == [network]
    assert (await client.get_json(f"/v2/endpoints/{endpoint['ID']}/stats"))["BytesSent"] == 36
    assert await client.get_json("/v2/version") == {"Major": 15, "Minor": 4}
    await client.delete(Kind.NETWORK, network["ID"])
    assert await client.list(Kind.ENDPOINT) == []
    status, body, _ = await raw(path, "DELETE", f"/v2/namespaces/{namespace['ID']}")
    assert (status, body) == (204, None)


async def test_what_is_returned_can_be_sent_again(client: AsyncHnsClient, service: HnsService) -> None:
    network = await client.create(Kind.NETWORK, overlay(policies=(HostRoute(),)))
    endpoint = await client.create(
        Kind.ENDPOINT, Endpoint(network_id=network["ID"], policies=(OutBoundNAT(),))
    )
    await client.delete(Kind.NETWORK, network["ID"])
    assert await client.create(Kind.NETWORK, network) == network
    assert await client.create(Kind.ENDPOINT, endpoint) == endpoint


async def test_filters(client: AsyncHnsClient, path: Path) -> None:
    one = await client.create(Kind.NETWORK, overlay())
    two = await client.create(Kind.NETWORK, bridge())
    mine = [await client.create(Kind.ENDPOINT, Endpoint(network_id=one["ID"], name=name)) for name in "ab"]
    other = await client.create(Kind.ENDPOINT, Endpoint(network_id=two["ID"], name="a"))
    assert await client.list(Kind.NETWORK, Name="cbr0") == [two]
    assert await client.list(Kind.NETWORK, name="CBR0") == []
    assert await client.list(Kind.NETWORK, ID=one["ID"].lower()) == [one]
    assert await client.list(Kind.NETWORK, VirtualNetwork=one["ID"]) == []
    assert await client.list(Kind.ENDPOINT, VirtualNetwork=one["ID"].lower()) == mine
    assert await client.list(Kind.ENDPOINT, VirtualNetworkName="cbr0") == [other]
    assert await client.list(Kind.ENDPOINT, VirtualNetwork=one["ID"], Name="a") == mine[:1]
    assert await client.list(Kind.ENDPOINT, State=1, Name="a") == [mine[0], other]
    assert await client.list(Kind.ENDPOINT, State="3") == []
    assert await client.list(Kind.ENDPOINT, ID=MISSING) == []
    assert await client.list(Kind.ENDPOINT, ID=f"{{{mine[0]['ID'].lower()}}}") == mine[:1]
    assert await client.list(Kind.ENDPOINT, VirtualNetwork=f"{{{one['ID']}}}") == mine
    assert await client.list(Kind.ROUTE, VirtualNetworkName="cbr0") == []
    query = {"SchemaVersion": {"Major": 2}, "Flags": 0, "Filter": json.dumps({"Name": "vxlan0"})}
    assert (await raw(path, "GET", f"/v2/networks?filter={json.dumps(query)}"))[1] == [one]
    assert len((await raw(path, "GET", '/v2/networks?filter={"Filter":""}'))[1]) == 2


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("{", HcnCode.INVALID_JSON),
        ("[]", HcnCode.INVALID_JSON),
        ("7", HcnCode.INVALID_JSON),
        ('{"Colour":1}', HcnCode.E_INVALIDARG),
        ('{"Name":{}}', HcnCode.E_INVALIDARG),
        ('{"Filter":"x"}', HcnCode.INVALID_JSON),
    ],
)
async def test_faulty_filters(path: Path, query: str, code: HcnCode) -> None:
    status, body, _ = await raw(path, "GET", f"/v2/endpoints?filter={query}")
    assert (status, body["ErrorCode"]) == (400, int(code))


@pytest.mark.parametrize(
    ("method", "url", "data", "status", "code"),
    [
        ("POST", "/v2/networks", b"", 400, HcnCode.INVALID_JSON),
        ("POST", "/v2/networks", b"{", 400, HcnCode.INVALID_JSON),
        ("POST", "/v2/networks", b'{"a":1,"a":2}', 400, HcnCode.INVALID_JSON),
        ("POST", "/v2/networks", b"\xff\xfe", 400, HcnCode.INVALID_JSON),
        ("POST", "/v2/networks", b"[" * 100_000, 400, HcnCode.INVALID_JSON),
        ("POST", "/v2/networks", b'{"Flags":' + b"9" * 9999 + b"}", 400, HcnCode.INVALID_JSON),
        ("POST", "/v2/networks", b'{"Type":"Mirrored"}', 400, HcnCode.INVALID_NETWORK_TYPE),
        ("POST", "/v2/networks", b" " * (MAX_REQUEST_BYTES + 1), 413, HcnCode.E_INVALIDARG),
        ("POST", f"/v2/networks/{MISSING}", b'{"ResourceType":"x"}', 400, HcnCode.REQUEST_UNSUPPORTED),
        ("POST", f"/v2/routes/{MISSING}", b'{"ResourceType":"x"}', 400, HcnCode.REQUEST_UNSUPPORTED),
        ("GET", f"/v2/networks/{MISSING}", None, 404, HcnCode.NETWORK_NOT_FOUND),
        ("GET", f"/v2/endpoints/{MISSING}", None, 404, HcnCode.ENDPOINT_NOT_FOUND),
        ("GET", f"/v2/namespaces/{MISSING}", None, 404, HcnCode.ERROR_NOT_FOUND),
        ("GET", "/v2/routes/" + "x" * 5000, None, 404, HcnCode.ERROR_NOT_FOUND),
        ("GET", f"/v2/endpoints/{MISSING}/stats", None, 404, HcnCode.ENDPOINT_NOT_FOUND),
        ("GET", "/v2/networks/%00%0a", None, 404, HcnCode.NETWORK_NOT_FOUND),
        ("GET", "/", None, 404, HcnCode.ERROR_NOT_FOUND),
        ("GET", "/v3/networks", None, 404, HcnCode.ERROR_NOT_FOUND),
        ("PUT", "/v2/networks", b"{}", 405, HcnCode.REQUEST_UNSUPPORTED),
        ("DELETE", "/v2/version", None, 405, HcnCode.REQUEST_UNSUPPORTED),
        ("PATCH", "/v2/networks", None, 405, HcnCode.REQUEST_UNSUPPORTED),
        ("GET", "/v2/fail/bug", None, 500, HcnCode.E_FAIL),
        ("GET", "/v2/fail/kernel", None, 500, HcnCode.E_FAIL),
        ("GET", "/v2/fail/missing", None, 404, HcnCode.ERROR_NOT_FOUND),
    ],
)  # fmt: skip
async def test_every_failure_has_a_clean_body(
    path: Path, method: str, url: str, data: bytes | None, status: int, code: HcnCode
) -> None:
    got, body, content_type = await raw(path, method, url, data)
    assert (got, body["ErrorCode"], content_type) == (status, int(code), "application/json")
    assert body["Success"] is False
    assert body["Error"]
    assert len(body["Error"]) < 400
    assert "secret" not in body["Error"]


async def test_wrong_methods_say_which_are_right(path: Path) -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.put("http://x/v2/version") as response,
    ):
        assert response.headers["Allow"] == "GET,HEAD"


async def test_a_failed_switch_is_a_server_error(client: AsyncHnsClient, switch: FakeSwitch) -> None:
    switch.refuse_next()
    with pytest.raises(HcnError, match="create veth") as caught:
        await client.create(Kind.NETWORK, bridge())
    assert caught.value.code is HcnCode.E_FAIL
    assert await client.list(Kind.NETWORK) == []


async def test_a_service_that_stops_takes_no_more_changes(service: HnsService, path: Path) -> None:
    await service.close()
    status, body, _ = await raw(path, "POST", "/v2/networks", b"{}")
    assert (status, body["ErrorCode"]) == (503, HcnCode.MANAGER_STOPPED)
    assert (await raw(path, "GET", "/v2/networks"))[0] == 200
    _, body, _ = await raw(path, "POST", "/v1/networks/", b'{"Type":"NAT"}')
    assert (body["Success"], body["ErrorCode"]) == (False, HcnCode.MANAGER_STOPPED)


def test_a_policy_that_the_switch_refuses_is_an_invalid_one() -> None:
    assert classify(Invalid("$.Policies", "VxlanPort 8472")) == (400, HcnCode.INVALID_POLICY)
    assert classify(Invalid("network: $.Policies[3].Settings", "x"))[1] is HcnCode.INVALID_POLICY
    assert classify(Invalid("$.NetnsPath", "x"))[1] is HcnCode.E_INVALIDARG


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HcnError(HcnCode.PORT_ALREADY_EXISTS, ""), 409),
        (HcnError(HcnCode.ENDPOINT_ALREADY_ATTACHED, ""), 409),
        (HcnError(HcnCode.ENTITY_HAS_REFERENCES, ""), 409),
        (HcnError(HcnCode.POLICY_NOT_FOUND, ""), 404),
        (HcnError(HcnCode.INVALID_POLICY, ""), 400),
        (Invalid("$.x", "y"), 400),
        (Conflict("x"), 409),
        (Exhausted("x", "y"), 507),
        (Unsupported("x", "y"), 501),
        (Unavailable("x", "y"), 503),
        (SamewireError("x"), 500),
    ],
)
def test_errors_have_fitting_statuses(error: SamewireError, status: int) -> None:
    assert classify(error)[0] == status


async def test_the_socket_is_private(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("allowed", "uid", "status"),
    [((), 1234, 403), ((1234,), 1234, 200), ((1234,), 0, 200), ((), 0, 200), ((), -1, 403)],
)
async def test_who_may_ask(
    service: HnsService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allowed: tuple[int, ...],
    uid: int,
    status: int,
) -> None:
    monkeypatch.setattr(http_guard, "peer_uid", lambda peer: uid)
    path = tmp_path / "other.sock"
    server = HttpServer(make_app(service, allowed_uids=allowed), path)
    await server.start()
    try:
        got, body, _ = await raw(path, "GET", "/v2/networks")
    finally:
        await server.close()
    assert got == status
    if status == 403:
        assert body["ErrorCode"] == int(HcnCode.E_ACCESSDENIED)


async def test_the_kernel_says_who_asks(
    service: HnsService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = http_guard.peer_uid

    def spy(peer: Any) -> int:
        seen.append(real(peer))
        return 0

    monkeypatch.setattr(http_guard, "peer_uid", spy)
    path = tmp_path / "other.sock"
    server = HttpServer(make_app(service), path)
    await server.start()
    try:
        await raw(path, "GET", "/v2/version")
    finally:
        await server.close()
    assert set(seen) == {os.getuid()}


async def test_two_daemons_do_not_share_a_socket(service: HnsService, path: Path) -> None:
    second = HttpServer(make_app(service), path)
    with pytest.raises(Conflict, match="another process listens"):
        await second.start()
    assert await AsyncHnsClient(path).get_json("/v2/version")


async def test_without_its_port_a_server_is_not_there_by_its_socket_either(
    service: HnsService, tmp_path: Path
) -> None:
    path = tmp_path / "half.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = HttpServer(make_app(service, token="t"), path, taken.getsockname())
        with pytest.raises(Unavailable, match="cannot be had"):
            await server.start()
    assert not path.exists()
    with pytest.raises(Unavailable):
        await AsyncHnsClient(path).get_json("/v2/version")


async def test_a_dead_socket_is_replaced(service: HnsService, tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = HttpServer(make_app(service, allowed_uids={os.getuid()}), path)
    await server.start()
    assert await AsyncHnsClient(path).get_json("/v2/version")
    await server.close()


@pytest.mark.parametrize("name", ["a-file", "missing/sock", "x" * 200])
async def test_a_socket_that_cannot_be_made(service: HnsService, tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(Unavailable, match=name[:20]):
        await HttpServer(make_app(service), tmp_path / name).start()
    assert (tmp_path / "a-file").exists()


async def test_noise_does_not_hurt(path: Path) -> None:
    for noise in (
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"POST /v2/networks HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        os.urandom(2000),
    ):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(noise)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
    with capture_logs() as logs:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        writer.close()
        await writer.wait_closed()
        assert await AsyncHnsClient(path).list(Kind.NETWORK) == []
    assert [entry for entry in logs if entry["log_level"] == "error"] == [], "who goes away is no bug of ours"


@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_closes_its_half_is_answered(path: Path, switch: FakeSwitch, count: int) -> None:
    switch.gate = asyncio.Event()
    reader, writer = await asyncio.open_unix_connection(path)
    for number in range(count):
        body = json.dumps({"Name": f"n{number}", "Type": "Private"}).encode()
        head = f"POST /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
    writer.write_eof()
    await switch.entered.wait()
    switch.gate.set()
    answers = await asyncio.wait_for(reader.read(), 10)
    assert answers.count(b"HTTP/1.1 201") == count
    writer.close()
    await writer.wait_closed()


async def test_a_direction_full_of_rules_fits_into_a_request(client: AsyncHnsClient) -> None:
    network = await client.create(Kind.NETWORK, overlay())
    endpoint = await client.create(Kind.ENDPOINT, Endpoint(network_id=network["ID"]))
    peers = ",".join(f"10.{n}.0.0/16" for n in range(20))
    name = "azure-acl-a-namespace-a-policy"
    rules = [
        {
            "Type": "ACL",
            "Settings": {"Id": name, "Action": "Allow", "Direction": "In", "RemoteAddresses": peers},
        }
    ] * 4095
    policies = {"Policies": rules}
    changed = await client.modify(Kind.ENDPOINT, endpoint["ID"], "Policy", "Update", policies)
    assert len(changed["Policies"]) == 4095


async def test_who_wants_no_object_back_gets_none(client: AsyncHnsClient, path: Path) -> None:
    network = await client.create(Kind.NETWORK, overlay())
    endpoint = await client.create(Kind.ENDPOINT, Endpoint(network_id=network["ID"]))
    request = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [{"Type": "QOS"}]}}
    url = f"/v2/endpoints/{endpoint['ID']}"
    status, body, _ = await raw(path, "POST", url, json.dumps(request).encode(), Prefer="return=minimal")
    assert (status, body) == (204, None)
    assert [policy["Type"] for policy in (await client.get(Kind.ENDPOINT, endpoint["ID"]))["Policies"]] == [
        "QOS"
    ]
    status, body, _ = await raw(path, "POST", url, json.dumps(request).encode(), Prefer="return=minimal")
    assert (status, body["ErrorCode"]) == (409, HcnCode.POLICY_ALREADY_EXISTS)


async def test_many_connect_at_once(path: Path) -> None:
    found = await asyncio.gather(*(raw(path, "GET", "/v2/networks") for _ in range(1000)))
    assert {status for status, _, _ in found} == {200}


def test_the_client_says_when_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        HnsClient(tmp_path / "nobody.sock").list(Kind.NETWORK)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnope", Unavailable),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]", Unavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{", Unavailable),
        (b"what?\r\n\r\n", Unavailable),
        (b'HTTP/1.1 418 Tea\r\nContent-Length: 15\r\n\r\n{"ErrorCode":7}', HcnError),
    ],
)
async def test_the_client_copes_with_strange_servers(
    tmp_path: Path, answer: bytes, error: type[Exception]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    path = tmp_path / "strange.sock"
    server = await asyncio.start_unix_server(serve, str(path))
    async with server:
        with pytest.raises(error):
            await AsyncHnsClient(path, timeout_s=10).get_json("/v2/version")


async def test_one_request_for_each_entry_point_of_the_library(client: AsyncHnsClient, path: Path) -> None:
    made = "0A1B2C3D-0000-0000-0000-000000000001"
    body = json.dumps(http_body(overlay())).encode()
    status, network, _ = await raw(path, "POST", f"/v2/networks?id={{{made.lower()}}}", body)
    assert (status, network["ID"]) == (201, made)
    zero = "00000000-0000-0000-0000-000000000000"
    status, endpoint, _ = await raw(path, "POST", f"/v2/endpoints?id={zero}&network={made}", b'{"Name": "a"}')
    assert (status, endpoint["HostComputeNetwork"]) == (201, made)
    assert endpoint["ID"] != zero
    # as hcsshim changes the endpoints of a load balancer
    again = json.dumps({"Name": "again", "ID": MISSING}).encode()
    status, kept, _ = await raw(path, "POST", f"/v2/endpoints?id={zero}&network={made}", again)
    assert (status, kept["ID"]) == (201, MISSING)
    await client.delete(Kind.ENDPOINT, MISSING)
    query = {"SchemaVersion": {"Major": 2}, "Flags": 0, "Filter": '{"Name": "a"}'}
    for asked, found in ((query, [endpoint["ID"]]), ({**query, "Filter": '{"Name": "b"}'}, [])):
        status, ids, _ = await raw(path, "POST", "/v2/endpoints/enumerate", json.dumps(asked).encode())
        assert (status, ids) == (200, found)
    assert (await raw(path, "POST", "/v2/networks/enumerate"))[:2] == (200, [made])
    zeros = b'{"SchemaVersion": {"Major": 0, "Minor": 0}}'
    assert (await raw(path, "POST", "/v2/networks/enumerate", zeros))[:2] == (200, [made])
    assert (await raw(path, "POST", f"/v2/networks/{{{made}}}/open"))[:2] == (204, None)
    status, error, _ = await raw(path, "POST", f"/v2/networks/{MISSING}/open")
    assert (status, error["ErrorCode"]) == (404, 0x80070490)
    old = {"SchemaVersion": {"Major": 1, "Minor": 0}}
    status, shown, _ = await raw(path, "POST", f"/v2/networks/{made}/query", json.dumps(old).encode())
    assert (status, shown["Subnets"][0]["AddressPrefix"]) == (200, "10.244.1.0/24")
    status, sent, _ = await raw(path, "POST", f"/v2/networks/{made}/query", json.dumps({"Flags": 1}).encode())
    assert sent["Health"]["Extra"]["Resources"] == {"Endpoints": [endpoint["ID"]]}
    v1_shape = {**shown, "Name": "again", "ID": "", "Subnets": [{"AddressPrefix": "10.9.0.0/24"}]}
    v1_shape |= {"Type": "l2bridge", "SchemaVersion": {"Major": 1, "Minor": 0}, "Policies": []}
    status, again, _ = await raw(path, "POST", "/v2/networks", json.dumps(v1_shape).encode())
    assert (status, again["Type"]) == (201, "L2Bridge")
    assert again["Ipams"][0]["Subnets"][0]["IpAddressPrefix"] == "10.9.0.0/24"
    listed = {
        "References": [f"/endpoints/{endpoint['ID']}"],
        "Policies": [
            {"Type": "ELB", "Protocol": 6, "InternalPort": 80, "ExternalPort": 80, "VIPs": ["10.96.0.9"]}
        ],
    }
    status, balancer, _ = await raw(path, "POST", "/v2/loadbalancers", json.dumps(listed).encode())
    assert (status, balancer["FrontendVIPs"]) == (201, ["10.96.0.9"])
    status, shown, _ = await raw(
        path, "POST", f"/v2/loadbalancers/{balancer['ID']}/query", json.dumps(old).encode()
    )
    assert (shown["References"], shown["Policies"][0]["VIPs"]) == (listed["References"], ["10.96.0.9"])
    status, error, _ = await raw(path, "POST", "/v2/routes", json.dumps(listed).encode())
    assert (status, error["ErrorCode"]) == (400, HcnCode.INVALID_POLICY)
    asked_for = json.dumps(query).encode()
    assert (await raw(path, "POST", f"/v2/networks/{made}/query", asked_for))[1] == network
    status, stats, _ = await raw(path, "POST", f"/v2/endpoints/{endpoint['ID']}/stats")
    assert (status, stats["BytesSent"]) == (200, 36)
    status, addresses, _ = await raw(path, "POST", f"/v2/endpoints/{endpoint['ID']}/addresses")
    assert addresses["IpConfigurations"][0]["IpAddress"] == "10.244.1.2"


@pytest.mark.parametrize(
    "query",
    [
        b"[]",
        b"x",
        b'{"Flags": 9}',
        b'{"SchemaVersion": {"Major": 3}}',
        b'{"SchemaVersion": {}}',
        b'{"Flags": 0, "Name": "x"}',
        b'{"Filter": "["}',
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(path: Path, query: bytes) -> None:
    status, error, _ = await raw(path, "POST", "/v2/networks/enumerate", query)
    assert (status, error["Success"]) == (400, False)


async def test_what_happens_is_told_line_by_line(client: AsyncHnsClient, path: Path) -> None:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://x/v2/notifications") as stream,
    ):
        assert await stream.content.readline() == b"\n"
        network = await client.create(Kind.NETWORK, overlay())
        endpoint = await client.create(Kind.ENDPOINT, Endpoint(network_id=network["ID"]))
        namespace = await client.create(Kind.NAMESPACE, Namespace())
        for how in ("Add", "Remove"):
            await client.modify(
                Kind.NAMESPACE, namespace["ID"], "Endpoint", how, {"EndpointId": endpoint["ID"]}
            )
        await client.delete(Kind.NAMESPACE, namespace["ID"])
        await client.delete(Kind.NETWORK, network["ID"])
        told = [json.loads(await stream.content.readline()) for _ in range(8)]
    whose = {network["ID"]: "network", namespace["ID"]: "namespace"}
    assert [(event["Type"], whose[event["Data"]["ID"]]) for event in told] == [
        (1, "network"),
        (2, "network"),
        (5, "namespace"),
        (9, "network"),
        (16, "network"),
        (6, "namespace"),
        (3, "network"),
        (4, "network"),
    ]
    both = {"EndpointId": endpoint["ID"], "NamespaceId": namespace["ID"]}
    assert told[3]["Data"]["Data"] == told[4]["Data"]["Data"] == both


async def test_who_listens_hears_of_the_end(service: HnsService, tmp_path: Path) -> None:
    server = HttpServer(make_app(service, allowed_uids={os.getuid()}), tmp_path / "end.sock")
    await server.start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "end.sock"))) as session,
        session.get("http://x/v2/notifications") as stream,
    ):
        assert await stream.content.readline() == b"\n"
        closing = asyncio.create_task(server.close())
        assert json.loads(await stream.content.readline())["Type"] == 0x01000000
        assert await stream.content.read() == b""
        await closing


async def test_a_listener_that_does_not_read_is_cut_off(
    service: HnsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "MAX_WAITING", 2)
    events = service.notifications.listen(60)
    assert await anext(events) is None
    await service.create_network(overlay())
    await service.create_network(bridge())
    told = [event.type async for event in events if event]
    assert told[-1] is notifications.NotificationType.SERVICE_DISCONNECT
    assert len(told) == 2


@pytest.mark.parametrize("turns", range(4))
async def test_who_is_cancelled_as_an_event_comes_has_ended(service: HnsService, turns: int) -> None:
    events = service.notifications.listen(60)
    assert await anext(events) is None
    listening = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    service.notifications.after([Change(Kind.NAMESPACE, MISSING, None, Namespace())])
    for _ in range(turns):
        await asyncio.sleep(0)
    heard = listening.done()
    listening.cancel()
    await asyncio.wait([listening])
    assert listening.cancelled() is not heard
    await events.aclose()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET /v2/networks HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_what_is_no_request_gets_an_error_of_hns(path: Path, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request_bytes)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    error = json.loads(await reader.readexactly(length))
    assert not error["Success"]
    assert HcnCode(error["ErrorCode"])
    assert error["Error"]
    writer.close()
    await writer.wait_closed()


async def test_what_is_shown_is_what_is_there_now(client: AsyncHnsClient) -> None:
    network = await client.create(Kind.NETWORK, overlay())
    namespace = await client.create(Kind.NAMESPACE, Namespace())
    endpoint = await client.create(Kind.ENDPOINT, Endpoint(network_id=network["ID"]))
    for state, how in ((3, "Add"), (4, "Remove")):
        await client.get(Kind.ENDPOINT, endpoint["ID"])
        await client.modify(Kind.NAMESPACE, namespace["ID"], "Endpoint", how, {"EndpointId": endpoint["ID"]})
        assert (await client.get(Kind.ENDPOINT, endpoint["ID"]))["State"] == state
        (listed,) = await client.list(Kind.ENDPOINT)
        assert listed["State"] == state
        (shown,) = await client.list(Kind.NAMESPACE)
        assert ("Resources" in shown) is (how == "Add")


async def test_a_long_list_leaves_turns_to_others() -> None:
    """Each piece of it is made in a turn of its own; the answer is one list."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    made_at: list[int] = []

    def text_of(value: int) -> bytes:
        made_at.append(turns)
        return str(value).encode()

    task = asyncio.create_task(other())
    answer = await list_response(range(3 * PIECE + 1), text_of)
    task.cancel()
    assert made_at[::PIECE] == sorted(set(made_at)), "a piece, a turn"
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body) == list(range(3 * PIECE + 1))
    empty = await list_response([], text_of)
    assert empty.body == b"[]"
