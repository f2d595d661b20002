"""Services change at random, and while traffic goes on: connections live as long as their pods."""

from __future__ import annotations

import itertools
import random
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.api_node import NODE_PORT, TWINS, VIP, far
from tests.support.churn import ENDED, FAR, Churn
from tests.support.crowd import Crowd, crowds, endpoint, who
from tests.support.node import NODE_IP, Json

pytestmark = pytest.mark.root


def test_nothing_is_lost_while_it_happens(churn: Churn, tmp_path: Path) -> None:
    """Traffic goes on all the time: not one packet of those whose backend stays is lost or answered by another."""
    world, stays, comes = churn.world, churn.near, FAR
    churn.publish(*stays, *comes)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(crowds(space, twins=TWINS)) for space in (churn.client, world.net.router) * 2
        ]
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


def bring(churn: Churn, model: Model) -> None:
    """Tell the API server, in one of several ways, and wait until the switch knows."""
    world, api = churn.world, churn.api
    match model.chance.randrange(5):
        case 0:
            world.node.stop(signal.SIGKILL)
            world.endpoints("all", *model.endpoints())
            world.node.start()
        case 1:
            api.call(lambda: api.server.drop("endpointslices"))
            world.endpoints("all", *model.endpoints())
            api.call(api.server.store.forget_history)
        case 2:
            world.service(sessionAffinity=model.chance.choice(("None", "ClientIP")))
            world.endpoints("all", *model.endpoints())
        case _:
            world.endpoints("all", *model.endpoints())
    world.settle()


@pytest.mark.parametrize("seed", [205, 211])
def test_whatever_happens(churn: Churn, seed: int) -> None:
    """Random changes, crashes and lists: a connection lives as long as its pod is listed, and no longer."""
    model = Model(random.Random(seed))
    churn.world.service()
    churn.world.endpoints("all", *model.endpoints())
    churn.world.settle()
    with ExitStack() as stack:
        senders = stack.enter_context(churn.pod.open(60, VIP, 80, "udp"))
        last = senders.first
        held: list[tuple[Crowd, set[str]]] = []
        for _ in range(12):
            held.append((stack.enter_context(churn.pod.open(60, VIP, 80)), set()))
            assert held[-1][0].addresses <= model.having("ready")
            before = dict(model.pods)
            model.change()
            bring(churn, model)
            same = {a for a in before if a in model.pods and model.pods[a][0] == before[a][0]}
            for crowd, gone in held:
                gone |= before.keys() - same
                crowd.expect(*gone, ends_with=ENDED)
            now, stay = senders.ask(), same & model.having("ready", "going")
            for was, answer in zip(last, now, strict=True):
                assert who(answer) in stay | model.having("ready")
                assert was == answer or who(was) not in stay
            last = now
