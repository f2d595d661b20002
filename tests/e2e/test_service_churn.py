"""Connections through services while everything changes: only what has lost its backend ends or moves.

The Services come from an API server over HTTP, and have both families: of whatever is opened, half is IPv6. A thousand
connections are held by one process; far backends are all
addresses of a prefix beyond the uplink, near ones are pods.
"""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from tests.apiserver.fake_server import Fault
from tests.support.api_node import NODE_PORT, PORTS, SLICE_PORTS, VIP, ApiNode, far, slices_of
from tests.support.churn import ENDED, FAR, MANY, PODS, Churn, follow
from tests.support.crowd import endpoint, who
from tests.support.node import NODE_IP, Json, poll

pytestmark = pytest.mark.root

WAVE = 100


def test_scale_down_ends_what_the_removed_had_and_nothing_else(churn: Churn) -> None:
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    with (
        churn.pod.open(MANY, VIP, 80) as held,
        churn.outside.open(100, NODE_IP, NODE_PORT) as outside,
        churn.pod.open(1, VIP, 80, "udp", source=45001) as sender,
    ):
        assert held.addresses == set(backends)
        gone = [churn.near[0], *FAR[:7], *map(who, sender.first)]
        left = [address for address in backends if address not in gone]
        churn.backends(*left)
        held.expect(*gone, ends_with=ENDED)
        outside.expect(*gone, ends_with=ENDED)
        now = follow(sender, sender.first, *left)
        churn.backends(*left, far(500), far(501))
        follow(sender, now, *left)
        survivors = [answer for answer in held.first if who(answer) not in gone]
        assert [answer for answer in held.ask() if answer in survivors] == survivors


def test_a_rollout_one_by_one(churn: Churn) -> None:
    """Each backend terminates, still serving, while its successor comes; then it is gone."""
    old, new = [*churn.near, *FAR[:5]], [far(600 + number) for number in range(PODS + 5)]
    churn.publish(*old)
    world = churn.world
    ended: list[str] = []
    with (
        churn.pod.open(MANY, VIP, 80) as held,
        churn.pod.open(1, VIP, 80, "udp", source=45001) as sender,
        churn.outside.open(20, NODE_IP, NODE_PORT, "udp") as senders,
    ):
        one, twenty = sender.first, senders.first
        for step, going in enumerate(old):
            ready = [*old[step + 1 :], *new[: step + 1]]
            live = [churn.endpoint(address) for address in ready]
            world.endpoints("all", *live, churn.endpoint(going, going=True))
            world.wait_for(*ready, draining=[going])
            held.expect(*ended, ends_with=ENDED)
            one = follow(sender, one, *ready, going)
            twenty = follow(senders, twenty, *ready, going)
            with churn.pod.open(40, VIP, 80) as later:
                assert later.addresses <= set(ready), "one that drains gets nothing new"
            churn.backends(*ready)
            ended.append(going)
            held.expect(*ended, ends_with=ENDED)
            one, twenty = follow(sender, one, *ready), follow(senders, twenty, *ready)
        assert set(ended) == held.addresses


def test_a_rollout_of_a_thousand_backends(churn: Churn) -> None:
    """In ten waves. While the old ones terminate nobody is moved and nobody is reset; then each wave ends its own."""
    world = churn.world
    old, new = ([far(number) for number in range(start, start + MANY)] for start in (0, MANY))
    waves = range(0, MANY, WAVE)
    world.service()
    for start in waves:
        world.endpoints(f"old-{start}", *map(endpoint, old[start : start + WAVE]))
    world.wait_for(*old)
    with churn.pod.open(MANY, VIP, 80) as held:
        assert len(held.addresses) > MANY / 2
        for start in waves:
            end = start + WAVE
            world.endpoints(f"new-{start}", *map(endpoint, new[start:end]))
            world.endpoints(f"old-{start}", *(endpoint(address, going=True) for address in old[start:end]))
            if start % (3 * WAVE) == 0:
                world.wait_for(*old[end:], *new[:end], draining=old[:end])
            held.expect()
        for end in (WAVE, 2 * WAVE, 3 * WAVE):
            world.remove_endpoints(f"old-{end - WAVE}")
            world.wait_for(*new, draining=old[end:])
            held.expect(*old[:end], ends_with=ENDED)


def test_backends_beyond_the_thousandth(churn: Churn) -> None:
    """A set of 2,000: those at places that 1,024 would not hold are reached like all others."""
    world = churn.world
    world.service()
    everybody = [far(number) for number in range(2000)]
    for start in range(0, 2000, 100):
        world.endpoints(f"part-{start}", *map(endpoint, everybody[start : start + 100]))
    world.wait_for(*everybody)
    with churn.pod.open(MANY, VIP, 80) as held:
        late = _late_places(world)
        assert len(late) == 2 * (2000 - 1024)
        spread = Counter(answer.split()[1] in late for answer in held.first)
        assert spread[True] > 100
        assert spread[False] > 100
        assert len(held.addresses) > 600
        held.expect()


def _late_places(world: ApiNode) -> set[str]:
    """The backends at places from 1,024 on, in both families."""
    addresses = {row["key"]["value"]: row["value"]["address"] for row in world.node.table("sw_backends")}
    sets: dict[int, list[str]] = {}
    for row in sorted(world.node.table("sw_backend_sets"), key=lambda row: int(row["key"]["chunk"])):
        places = sets.setdefault(row["key"]["set"], [])
        places += [addresses[place["backend"]] for place in row["value"]["place"] if place["backend"]]
    return {address for places in sets.values() for address in places[1024:]}


def test_lists_that_come_again(churn: Churn) -> None:
    """A watch that expires lists again (410): what is the same stays, what has changed meanwhile changes."""
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    api, world = churn.api, churn.world
    before = world.tables()
    with churn.pod.open(MANY, VIP, 80) as held, churn.pod.open(40, VIP, 80, "udp") as senders:
        listed = api.asked("list", "endpointslices")
        api.call(api.server.store.forget_history)
        api.call(lambda: api.server.disturb("expire"))
        poll("a new list", lambda: api.asked("list", "endpointslices") > listed)
        poll("a new watch", world.connected)
        held.expect()
        senders.expect()
        assert world.tables() == before
        # changes in the gap: nobody sees the event, only the next list
        api.call(lambda: api.server.drop("endpointslices"))
        world.endpoints("all", *map(churn.endpoint, backends[1:]))
        api.call(api.server.store.forget_history)
        world.wait_for(*backends[1:])
        held.expect(backends[0], ends_with=ENDED)
        follow(senders, senders.first, *backends[1:])


def test_an_api_server_that_goes_away_or_hangs_changes_nothing(churn: Churn) -> None:
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    api, world = churn.api, churn.world
    before = world.tables()
    with churn.pod.open(MANY, VIP, 80) as held:
        api.down()
        poll("the daemon has noticed", lambda: not world.connected())
        held.expect()
        with churn.pod.open(50, VIP, 80) as new:
            assert new.addresses <= set(backends)
        api.call(lambda: api.server.plan(*(Fault(verb, hang=True) for verb in ("list", "watch") * 6)))
        asked = api.asked("watch", "endpointslices") + api.asked("list", "endpointslices")
        api.up()
        poll(
            "it hangs",
            lambda: api.asked("watch", "endpointslices") + api.asked("list", "endpointslices") > asked,
        )
        world.endpoints("all", *map(churn.endpoint, backends[1:]))
        held.expect()
        assert world.tables() == before
        api.down()
        api.call(api.server._faults.clear)
        api.up()
        world.wait_for(*backends[1:])
        held.expect(backends[0], ends_with=ENDED)


def test_kill_9_in_the_middle_and_a_start_without_an_api_server(churn: Churn) -> None:
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    api, world = churn.api, churn.world
    before = world.tables()
    with (
        churn.pod.open(MANY, VIP, 80) as held,
        churn.outside.open(50, NODE_IP, NODE_PORT, "udp") as datagrams,
    ):
        world.node.stop(signal.SIGKILL)
        held.expect()
        with churn.pod.open(50, VIP, 80) as new:
            assert new.addresses <= set(backends)
        api.down()
        world.node.start()
        assert world.tables() == before, "what was programmed stays, whether or not the API can be reached"
        held.expect()
        datagrams.expect()
        with churn.pod.open(50, VIP, 80) as new:
            assert new.addresses <= set(backends)
        world.node.stop(signal.SIGKILL)  # once more, and now things change while nobody looks
        world.endpoints("all", *map(churn.endpoint, backends[2:]), endpoint(far(700)))
        api.call(lambda: api.server.plan(Fault("list", "endpointslices", hang=True)))
        watched = api.asked("watch", "services")
        api.up()
        world.node.start()
        poll("services are known", lambda: api.asked("watch", "services") > watched)
        assert world.tables() == before, "half of what there is says nothing"
        api.down()
        api.up()
        world.wait_for(*backends[2:], far(700))
        held.expect(*backends[:2], ends_with=ENDED)
        follow(datagrams, datagrams.first, *backends[2:], far(700))


@pytest.mark.parametrize(
    "moment", ["update sw_backend_sets", "delete from sw_backends", "update sw_services"]
)
def test_kill_9_while_backends_change(churn: Churn, moment: str) -> None:
    """The daemon dies within a change: afterwards everything is as wanted, and only the removed have lost."""
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    world = churn.world
    with (
        churn.pod.open(MANY, VIP, 80) as held,
        churn.pod.open(1, VIP, 80, "udp", source=45001) as sender,
    ):
        world.node.stop(signal.SIGKILL)
        world.node.start({"SAMEWIRE_TEST_FAULT": f"{moment}|kill|2"})
        gone = [churn.near[0], FAR[0]]  # no more: so few are removed one by one
        left = [address for address in backends if address not in gone]
        ports = [{**port, "port": 81, "name": f"more-{port['name']}"} for port in PORTS]
        world.service(ports=[*PORTS, *({k: v for k, v in port.items() if k != "nodePort"} for port in ports)])
        world.endpoints("all", *map(churn.endpoint, left))
        world.node.wait_dead()
        world.node.start()
        world.settle()
        world.service()
        world.settle()
        world.wait_for(*left)
        held.expect(*gone, ends_with=ENDED)
        follow(sender, sender.first, *left)
        assert len(world.node.table("sw_backends")) == 8 * len(left), "cluster IP and node port, TCP and UDP"


EDITS: dict[str, Json] = {
    "annotation": {"annotations": {"samewire.io/dsr": "false", "example.org/note": "new"}},
    "affinity": {"sessionAffinity": "ClientIP"},
    "internal policy": {"internalTrafficPolicy": "Local"},
    "external policy": {"externalTrafficPolicy": "Local"},
    "another node port": {"ports": [{**PORTS[0], "nodePort": NODE_PORT + 1}]},
    "no node port": {"type": "ClusterIP"},
    "an external IP": {"externalIPs": ["203.0.113.77"]},
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_a_service_move_nothing(churn: Churn, edit: str) -> None:
    """From the service as it is to the edited one, and back again."""
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    world = churn.world
    with churn.pod.open(MANY, VIP, 80) as held, churn.outside.open(60, NODE_IP, NODE_PORT) as outside:
        world.service(**EDITS[edit])
        world.settle()
        held.expect()
        if "node port" not in edit:
            outside.expect()
        world.service()
        world.settle()
        world.wait_for(*backends)
        held.expect()


@pytest.mark.parametrize("first", ["services", "endpointslices"])
def test_a_renamed_port_moves_nothing(churn: Churn, first: str) -> None:
    """The controller edits the slices after the Service, in place, and of two watches either may be late. In between
    nobody new gets in, and who is there stays.
    """
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    world = churn.world
    pieces = slices_of("all", map(churn.endpoint, backends))
    renamed = [{**port, "name": f"new-{port['name']}"} for port in SLICE_PORTS]
    ports = [{**port, "name": f"new-{port['name']}"} for port in PORTS]
    edits = {
        "services": lambda: world.service(ports=ports),
        "endpointslices": lambda: churn.api.put(
            "endpointslices", *({**piece, "ports": renamed} for piece in pieces)
        ),
    }
    with churn.pod.open(MANY, VIP, 80) as held, churn.pod.open(40, VIP, 80, "udp") as senders:
        edits.pop(first)()
        world.wait_for(draining=backends)
        held.expect()
        senders.expect()
        edits.popitem()[1]()
        world.wait_for(*backends)
        assert {lb["ServiceName"] for lb in world.node.request("GET", "/v2/loadbalancers")} == {
            "default/web:new-http",
            "default/web:new-udp",
        }
        held.expect()
        senders.expect()


def test_endpoints_that_move_between_slices_keep_their_connections(churn: Churn) -> None:
    """A Service of more endpoints than one slice holds gets one port more: the controller puts them into its slices in
    another order, and edits these one after the other.
    """
    backends = [*churn.near, *FAR]
    more = {"name": "more", "port": 9090, "protocol": "TCP"}
    world = churn.world

    def put(piece: str, addresses: list[str], *ports: Json) -> None:
        made = slices_of(piece, map(churn.endpoint, addresses))
        churn.api.put("endpointslices", *({**one, "ports": [*SLICE_PORTS, *ports]} for one in made))

    world.service()
    put("a", backends[::2])
    put("b", backends[1::2])
    world.wait_for(*backends)
    with churn.pod.open(MANY, VIP, 80) as held, churn.pod.open(40, VIP, 80, "udp") as senders:
        world.service(ports=[*PORTS, more])
        put("a", backends[12:], more)
        world.settle()
        held.expect()
        senders.expect()
        put("b", backends[1:12], more)
        world.settle()
        held.expect(backends[0], ends_with=ENDED)


def test_a_service_that_cannot_be_holds_up_no_other(churn: Churn) -> None:
    """HNS refuses UDP port 4789 from outside, the tunnels' own; all others go on, in the same batch and later."""
    world = churn.world
    churn.publish(*churn.near)
    with churn.pod.open(200, VIP, 80) as held:
        bad = [{"name": "udp", "port": 4789, "protocol": "UDP"}]
        world.service("bad", "10.96.0.11", ports=bad, type="ClusterIP", externalIPs=["203.0.113.9"])
        world.endpoints("all", *map(churn.endpoint, churn.near), of="bad")
        world.service(
            "good", "10.96.0.12", ports=[{"name": "http", "port": 80, "protocol": "TCP"}], type="ClusterIP"
        )
        world.endpoints("all", *map(churn.endpoint, churn.near), of="good")
        world.wait_for(*churn.near, of="good")
        errors = {one["name"]: one.get("error", "") for one in world.node.request("GET", "/v2/services")}
        assert {name for name, error in errors.items() if error} == {"bad"}
        assert "4789" in errors["bad"]
        churn.backends(*churn.near[1:])
        held.expect(churn.near[0], ends_with=ENDED)
        with churn.pod.open(20, "10.96.0.12", 80) as good:
            assert good.addresses == set(churn.near)
