"""Connections through services while everything changes: only what has lost its backend ends or moves.

The Services come from an API server over HTTP. A thousand connections are held by one process; far backends are all
addresses of a prefix beyond the uplink, near ones are pods.
"""

from __future__ import annotations

import itertools
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver.fake_server import Fault
from tests.support.api_node import NODE_PORT, PORT, PORTS, VIP, ApiNode, api_node, far
from tests.support.cgroups import own_cgroup
from tests.support.crowd import Crowd, Crowds, crowds, endpoint
from tests.support.node import NODE_IP, PREFIX, Json, poll

pytestmark = pytest.mark.root

MANY = 1000
WAVE = 100
PODS = 3
FAR = [far(number) for number in range(20)]
ENDED = frozenset({"ECONNRESET", "EPIPE"})


class Churn:
    """The node with a few pods behind its services, and clients: in a pod, on the node, outside."""

    def __init__(self, world: ApiNode, group: Path, stack: ExitStack) -> None:
        self.world = world
        self.api = world.api
        self.near = [world.pod(f"near{number}", server=f"near{number}")[1] for number in range(PODS)]
        self.client = world.pod("client")[0]
        self.pod: Crowds = stack.enter_context(crowds(self.client))
        self.host: Crowds = stack.enter_context(crowds(world.net.node, group))
        self.outside: Crowds = stack.enter_context(crowds(world.net.router))

    def publish(self, *addresses: str, **spec: Any) -> None:
        """The service with these backends, those that are pods of the node as such."""
        self.world.service(**spec)
        self.backends(*addresses)

    def backends(self, *addresses: str) -> None:
        """Change its backends, in one event, and wait until that is so."""
        self.world.endpoints("all", *(self.endpoint(address) for address in addresses))
        self.world.wait_for(*addresses)

    def endpoint(self, address: str, *, going: bool = False) -> Json:
        """An endpoint of a slice."""
        return endpoint(address, node="node" if address in self.near else "far", going=going)


def who(answer: str) -> str:
    """The address of who answered."""
    return answer.split()[1]


def follow(senders: Crowd, last: list[str], *alive: str) -> list[str]:
    """Senders of datagrams ask again: those whose backend is alive stay with it, the others get one that is."""
    now = senders.ask()
    for before, after in zip(last, now, strict=True):
        assert who(after) in alive
        assert before == after or who(before) not in alive
    return now


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Churn]:
    with ExitStack() as stack:
        group = stack.enter_context(own_cgroup(f"{PREFIX}-churn"))
        world = stack.enter_context(api_node(tmp_path_factory.mktemp("churn"), group))
        yield Churn(world, group, stack)


@pytest.fixture(autouse=True)
def cleared(churn: Churn) -> Iterator[None]:
    yield
    churn.world.clear()
    assert churn.world.node.differences() == []


def test_scale_down_ends_what_the_removed_had_and_nothing_else(churn: Churn) -> None:
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    with churn.pod.open(MANY, VIP, 80) as held, churn.outside.open(100, NODE_IP, NODE_PORT) as outside:
        assert held.addresses == set(backends)
        gone = [churn.near[0], *FAR[:7]]
        churn.backends(*(address for address in backends if address not in gone))
        held.expect(*gone, ends_with=ENDED)
        outside.expect(*gone, ends_with=ENDED)
        churn.backends(*(address for address in backends if address not in gone), far(500), far(501))
        survivors = [answer for answer in held.first if answer.split()[1] not in gone]
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
            world.api.delete("endpointslices", f"web-old-{end - WAVE}")
            world.wait_for(*new, draining=old[end:])
            held.expect(*old[:end], ends_with=ENDED)


def test_backends_beyond_the_thousandth(churn: Churn) -> None:
    """A set of 1,500: those at places that 1,024 would not hold are reached like all others."""
    world = churn.world
    world.service()
    everybody = [far(number) for number in range(1500)]
    for start in range(0, 1500, 100):
        world.endpoints(f"part-{start}", *map(endpoint, everybody[start : start + 100]))
    world.wait_for(*everybody)
    with churn.pod.open(MANY, VIP, 80) as held:
        late = _late_places(world)
        assert len(late) == 1500 - 1024
        spread = Counter(address in late for address in held.addresses)
        assert spread[True] > 100
        assert spread[False] > 100
        assert len(held.addresses) > 600
        held.expect()


def _late_places(world: ApiNode) -> set[str]:
    """The backends at places from 1,024 on in the largest set."""
    addresses = {row["key"]["value"]: row["value"]["address"] for row in world.node.table("sw_backends")}
    sets: dict[int, list[str]] = {}
    for row in sorted(world.node.table("sw_backend_sets"), key=lambda row: int(row["key"]["chunk"])):
        places = sets.setdefault(row["key"]["set"], [])
        places += [addresses[place["backend"]] for place in row["value"]["place"] if place["backend"]]
    return set(max(sets.values(), key=len)[1024:])


def test_nothing_is_lost_while_it_happens(churn: Churn, tmp_path: Path) -> None:
    """Traffic goes on all the time: not one packet of those whose backend stays is lost or answered by another."""
    world, stays, comes = churn.world, churn.near, FAR
    churn.publish(*stays, *comes)
    with ExitStack() as stack:
        clients = [stack.enter_context(crowds(space)) for space in (churn.client, world.net.router) * 2]
        busy = [
            stack.enter_context(client.open(60, host, port, protocol))
            for client, host, port, protocol in zip(
                clients,
                (VIP, NODE_IP, VIP, NODE_IP),
                (80, NODE_PORT, 80, NODE_PORT),
                ("udp", "udp", "tcp", "tcp"),
                strict=True,
            )
        ]
        with ExitStack() as during:
            heard = [
                during.enter_context(crowd.asking(tmp_path / str(number)))
                for number, crowd in enumerate(busy)
            ]
            for step in range(len(comes)):
                churn.backends(*stays, *comes[step + 1 :], *(far(800 + number) for number in range(step)))
            world.service(sessionAffinity="ClientIP")
            world.settle()
            churn.api.call(churn.api.server.store.forget_history)
            churn.api.call(lambda: churn.api.server.disturb("expire"))
            world.node.stop(signal.SIGKILL)
            world.node.start()
            world.service()
            world.settle()
        for crowd, all_heard in zip(busy, heard, strict=True):
            mine = [
                (before, after)
                for before, after in zip(crowd.first, all_heard, strict=True)
                if who(before) in stays
            ]
            assert mine
            assert all(before == after for before, after in mine), mine


class Model:
    """Which endpoints there are, by what random changes have made of them; at least one is ready."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.pods: dict[str, tuple[str, str]] = {}
        """The UID and the condition of the pod at an address."""
        self._numbers = itertools.count()
        for _ in range(6):
            self.come()

    def come(self, address: str = "") -> None:
        """A pod, at a new address or at that of another one, which it replaces."""
        number = next(self._numbers)
        self.pods[address or far(900 + number)] = (f"uid-{number}", "ready")

    def change(self) -> None:
        """Something happens to some pods, all at once."""
        for _ in range(self.chance.randint(1, 3)):
            address = self.chance.choice(list(self.pods))
            what = self.chance.choice(("come", "go", "reuse", "ready", "going", "ended", "unready"))
            if what == "come":
                self.come()
            elif what == "reuse":
                self.come(address)
            elif what == "go":
                del self.pods[address]
            else:
                self.pods[address] = (self.pods[address][0], what)
            if "ready" not in (condition for _, condition in self.pods.values()):
                self.come()

    def endpoints(self) -> list[Json]:
        """The slice."""
        made = []
        for address, (uid, condition) in self.pods.items():
            going = condition in ("going", "ended")
            ready, serving = condition == "ready", condition in ("ready", "going")
            conditions = {"ready": ready, "serving": serving, "terminating": going}
            made.append({**endpoint(address, uid=uid), "conditions": conditions})
        return made

    def having(self, *conditions: str) -> set[str]:
        """The addresses of pods in these conditions."""
        return {address for address, (_, condition) in self.pods.items() if condition in conditions}


@pytest.mark.parametrize("seed", (205, 211))
def test_whatever_happens(churn: Churn, seed: int) -> None:
    """Random changes, crashes and lists: a connection lives as long as its pod is listed, and no longer."""
    chance, world = random.Random(seed), churn.world
    model = Model(chance)
    world.service()
    world.endpoints("all", *model.endpoints())
    world.settle()
    with ExitStack() as stack:
        held: list[tuple[Crowd, dict[str, str]]] = []
        senders = stack.enter_context(churn.pod.open(60, VIP, 80, "udp"))
        last, of = senders.first, {address: uid for address, (uid, _) in model.pods.items()}
        for _ in range(12):
            held.append(
                (
                    stack.enter_context(churn.pod.open(60, VIP, 80)),
                    {a: uid for a, (uid, _) in model.pods.items()},
                )
            )
            assert held[-1][0].addresses <= model.having("ready")
            model.change()
            match chance.randrange(5):
                case 0:
                    world.node.stop(signal.SIGKILL)
                    world.endpoints("all", *model.endpoints())
                    world.node.start()
                case 1:
                    churn.api.call(lambda: churn.api.server.drop("endpointslices"))
                    world.endpoints("all", *model.endpoints())
                    churn.api.call(churn.api.server.store.forget_history)
                    poll("a new watch", world.connected)
                case 2:
                    world.service(sessionAffinity=chance.choice(("None", "ClientIP")))
                    world.endpoints("all", *model.endpoints())
                case _:
                    world.endpoints("all", *model.endpoints())
            world.settle()
            for crowd, uids in held:
                gone = {a for a in crowd.addresses if a not in model.pods or model.pods[a][0] != uids[a]}
                crowd.expect(*gone, ends_with=ENDED)
            same = {a for a in of if a in model.pods and model.pods[a][0] == of[a]}
            stay = same & model.having("ready", "going")
            now = senders.ask()
            for before, after in zip(last, now, strict=True):
                assert who(after) in stay | model.having("ready")
                assert before == after or who(before) not in stay
            last, of = now, {address: uid for address, (uid, _) in model.pods.items()}
            for _, uids in held:
                ended = [a for a in uids if a not in model.pods or model.pods[a][0] != uids[a]]
                uids.update(dict.fromkeys(ended, "gone for good"))


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
    with churn.pod.open(MANY, VIP, 80) as held:
        world.node.stop(signal.SIGKILL)
        world.node.start({"SAMEWIRE_TEST_FAULT": f"{moment}|kill|2"})
        gone = [*churn.near[:1], *FAR[:3]]
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
        assert len(world.node.table("sw_backends")) == 4 * len(left), "cluster IP and node port, TCP and UDP"


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


def test_a_renamed_port_moves_nothing(churn: Churn) -> None:
    ports = [{"name": "www", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT}]
    backends = [*churn.near, *FAR]
    churn.publish(*backends)
    world = churn.world
    piece: Json = churn.api.call(lambda: churn.api.server.store.get("endpointslices", ("default", "web-all")))
    with churn.pod.open(MANY, VIP, 80) as held:
        # the endpoints under both names first, as the controller's own slices overlap during such an edit
        both = [*piece["ports"], {"name": "www", "port": PORT, "protocol": "TCP"}]
        churn.api.put("endpointslices", {**piece, "ports": both})
        world.service(ports=ports)
        world.settle()
        assert {lb["ServiceName"] for lb in world.node.request("GET", "/v2/loadbalancers")} == {
            "default/web:www"
        }
        held.expect()
        churn.api.put("endpointslices", {**piece, "ports": both[2:]})
        world.settle()
        held.expect()


def test_datagrams_to_a_removed_backend_go_elsewhere_at_once(churn: Churn) -> None:
    """Senders that never change their port, everywhere; those of other backends stay where they are."""
    backends = [*churn.near, *FAR[:3]]
    churn.publish(*backends)
    with ExitStack() as stack:
        told = stack.enter_context(churn.host.open(40, VIP, 80, "udp"))
        silent = [
            stack.enter_context(opened)
            for opened in (
                churn.pod.open(40, VIP, 80, "udp"),
                churn.pod.open(40, NODE_IP, NODE_PORT, "udp", connected=False),
                churn.host.open(40, VIP, 80, "udp", connected=False),
                churn.host.open(40, "127.0.0.1", NODE_PORT, "udp", connected=False),
                churn.outside.open(40, NODE_IP, NODE_PORT, "udp"),
                churn.outside.open(40, NODE_IP, NODE_PORT, "udp", connected=False),
            )
        ]
        for crowd in (told, *silent):
            assert crowd.addresses == set(backends)
        gone = {churn.near[0], FAR[0]}
        churn.backends(*(address for address in backends if address not in gone))
        for crowd in silent:
            for before, after in zip(crowd.first, crowd.ask(), strict=True):
                assert who(after) not in gone
                assert (before == after) == (who(before) not in gone)
        told.expect(*gone, ends_with=frozenset({"EDESTADDRREQ", "ECONNABORTED"}))
        # as an application does that is told: it connects again, with the socket that it has
        for before, after in zip(told.first, told.mend(), strict=True):
            assert who(after) not in gone
            assert (before == after) == (who(before) not in gone)


def test_one_backend_none_and_one_again(churn: Churn) -> None:
    """Datagrams are refused in between, and go on afterwards, all from the same ports."""
    churn.publish(churn.near[0])
    with ExitStack() as stack:
        host = stack.enter_context(churn.host.open(2, VIP, 80, "udp"))
        loose = stack.enter_context(churn.host.open(2, VIP, 80, "udp", connected=False))
        pod = stack.enter_context(churn.pod.open(1, VIP, 80, "udp", source=45000))
        outside = stack.enter_context(churn.outside.open(2, NODE_IP, NODE_PORT, "udp"))
        churn.backends()
        for crowd in (loose, pod, outside):
            assert set(crowd.ask()) == {"ECONNREFUSED"}
        assert set(host.ask()) <= {"EDESTADDRREQ", "ECONNABORTED"}
        assert set(host.connect_again()) == {"ECONNREFUSED"}
        for client, where in ((churn.pod, VIP), (churn.host, VIP), (churn.outside, NODE_IP)):
            port = 80 if where == VIP else NODE_PORT
            with client.open(1, where, port, "tcp") as refused:
                assert refused.first == ["ECONNREFUSED"]
        churn.backends(FAR[0])
        for crowd in (loose, pod, outside):
            assert {who(answer) for answer in crowd.ask()} == {FAR[0]}
        assert set(host.connect_again()) == {"connected"}
        assert {who(answer) for answer in host.ask()} == {FAR[0]}


@pytest.mark.parametrize("fault", ["kill", "EIO"])
def test_a_connected_socket_is_ended_at_the_latest_by_the_next_start(churn: Churn, fault: str) -> None:
    """The daemon dies over it, or the kernel refuses; sockets that go to the pod itself are nobody's business."""
    world = churn.world
    churn.publish(FAR[0], FAR[1])
    with churn.host.open(20, VIP, 80, "udp") as held, churn.host.open(3, FAR[0], PORT, "udp") as direct:
        world.node.stop(signal.SIGKILL)
        world.node.start({"SAMEWIRE_TEST_FAULT": f"end a connected socket|{fault}|1"})
        world.settle()
        world.endpoints("all", endpoint(FAR[1]))
        if fault == "kill":
            world.node.wait_dead()
        else:
            world.wait_for(FAR[1])
            held.expect()
            world.node.stop(signal.SIGKILL)
        world.node.start()
        world.wait_for(FAR[1])
        held.expect(FAR[0], ends_with=frozenset({"EDESTADDRREQ", "ECONNABORTED"}))
        direct.expect()


def test_an_address_that_another_pod_gets(churn: Churn) -> None:
    """A far pod is replaced within one event, by one with the same address: old flows are not for the new pod."""
    world = churn.world
    world.service()
    world.endpoints("all", endpoint(FAR[0], uid="one"), endpoint(FAR[1], uid="other"))
    world.wait_for(*FAR[:2])
    with churn.pod.open(100, VIP, 80) as held, churn.outside.open(40, NODE_IP, NODE_PORT) as outside:
        world.endpoints("all", endpoint(FAR[0], uid="two"), endpoint(FAR[1], uid="other"))
        world.settle()
        held.expect(FAR[0], ends_with=ENDED)
        outside.expect(FAR[0], ends_with=ENDED)
    # the same while nobody watches: only a list shows it, and only to the next daemon
    with churn.pod.open(100, VIP, 80) as held:
        world.node.stop(signal.SIGKILL)
        world.endpoints("all", endpoint(FAR[0], uid="three"), endpoint(FAR[1], uid="other"))
        world.node.start()
        world.settle()
        held.expect(FAR[0], ends_with=ENDED)
        with churn.pod.open(40, VIP, 80) as new:
            assert new.addresses == set(FAR[:2])


def test_an_address_that_another_pod_of_the_node_gets(churn: Churn) -> None:
    """The runtime replaces the pod before Kubernetes has said anything of it."""
    world = churn.world
    first, address = world.pod("first", server="first")
    churn.publish(address, churn.near[1])
    churn.near.append(address)
    with churn.pod.open(60, VIP, 80) as held, churn.pod.open(40, VIP, 80, "udp") as datagrams:
        assert datagrams.addresses == {address, churn.near[1]}
        world.remove("first", first)
        _, again = world.pod("second", server="second", address=address)
        assert again == address
        held.expect(address, ends_with=ENDED)
        churn.backends(churn.near[1])
        assert {who(answer) for answer in datagrams.ask()} == {churn.near[1]}


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
