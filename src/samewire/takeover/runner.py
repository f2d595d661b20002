"""A takeover from beginning to end: find, plan, write down, apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

import samewire
from samewire.errors import SamewireError, Unavailable
from samewire.hcn.client import HnsClient
from samewire.kernel.rtnetlink import Netlink, link_dump
from samewire.node.config import NodeConfig
from samewire.node.runlock import TAKEOVER_LOCK_NAME, lock_file
from samewire.takeover import plan
from samewire.takeover.apply import Applier, forget_journal, load_journal, save_journal
from samewire.takeover.checks import check_takeover
from samewire.takeover.find import find
from samewire.takeover.model import Found, Journal, Node, Places, Step
from samewire.takeover.plan import TUNNEL

JOURNAL: Final = "takeover.json"
_ROUNDS: Final = 4


class Takeover:
    """One run on this node. ``tell`` is called before each step. All methods raise SamewireError."""

    def __init__(
        self, config: NodeConfig, config_file: Path, places: Mapping[str, str], tell: Callable[[Step], None]
    ) -> None:
        """``places``: the fields of `Places` that differ from those of the takeover before, or the usual ones. Raises
        Unavailable.
        """
        self._config = config
        self._config_file = config_file
        self._journal_file = config.state_dir / JOURNAL
        journal = self._journal
        known = journal.places if journal else Places()
        self._places = msgspec.structs.replace(known, journal=str(self._journal_file), **places)
        self._applier = Applier(HnsClient(config.http_socket), tell)

    def found(self) -> Found:
        """What is there now."""
        journal = self._journal
        return find(self._places, journal.found.conf if journal and not journal.removed else None)

    def steps(self, found: Found, action: str) -> list[Step]:
        """What ``takeover``, ``undo`` or ``remove`` would do, as far as can be said before it begins."""
        journal = self._journal
        if action == "undo":
            return plan.undo(found, journal, self._node(found, journal, undo=True), self._places)
        node = self._node(found, journal)
        if action == "remove":
            return plan.remove(found, journal, node, self._places)
        check_takeover(found, journal, node, self._places)
        early, late = plan.takeover(found, plan.journal_of(found, journal), node, self._places)
        return [*early, *late]

    def take_over(self) -> None:
        """Bring Samewire's network up beside what is there. May be repeated."""
        with self._alone():
            self._take_over()

    def _take_over(self) -> None:
        found, journal = self.found(), self._journal
        node = self._node(found, journal)
        check_takeover(found, journal, node, self._places)
        journal = msgspec.structs.replace(plan.journal_of(found, journal), places=self._places)
        save_journal(self._journal_file, journal)
        early, _ = plan.takeover(found, journal, node, self._places)
        self._applier.apply(early)
        # From here on the runtime brings no pod to the old network; but a call may have been under way.
        old: tuple[str, ...] | None = None
        with self._back_on_failure(journal, found.devices):
            for _ in range(_ROUNDS):
                now = self.found()
                node = self._node(now, journal)
                if plan.spared(now, journal, node) == old:
                    break
                old = plan.spared(now, journal, node)
                again, late = plan.takeover(now, journal, node, self._places)
                self._applier.apply([*(step for step in again if step not in early), *late])

    def undo(self) -> None:
        """Everything as it was."""
        with self._alone():
            self._applier.apply(self.steps(self.found(), "undo"))
            forget_journal(self._journal_file)

    def remove(self) -> None:
        """Remove what was replaced. May be repeated."""
        with self._alone():
            self._remove()

    def _remove(self) -> None:
        steps = self.steps(self.found(), "remove")
        journal = self._journal
        assert journal is not None
        self._applier.apply(steps[:2] if not journal.removed else ())
        save_journal(self._journal_file, msgspec.structs.replace(journal, removed=True))
        self._applier.apply(steps[2:] if not journal.removed else steps)

    @property
    def _journal(self) -> Journal | None:
        return load_journal(self._journal_file)

    def _node(self, found: Found, journal: Journal | None, *, undo: bool = False) -> Node:
        conf = found.conf or (journal.found.conf if journal else None)
        running = True
        try:
            pods, uplink = self._applier.pods(conf.name) if conf else [], self._applier.uplink()
        except Unavailable:
            if not undo or _has_tunnel():
                raise
            pods, uplink, running = [], "", False
        return Node(
            vxlan_port=self._config.vxlan_port,
            balances=self._config.balances,
            serves_itself=bool(self._config.host_cgroup),
            reads=self._config.has_source,
            network=self._config.proxy_network,
            config=str(self._config_file),
            pods=tuple(pods),
            uplink=uplink,
            client=str(Path(samewire.__file__).parent / "_build" / "samewire-cni"),
            running=running,
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One run at a time: each looks at what is there and writes it down. Raises Conflict, Unavailable."""
        path = self._config.run_dir / TAKEOVER_LOCK_NAME
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_file(path, f"another takeover is under way: {path}"))
            except OSError as error:
                raise Unavailable(str(path), f"cannot be locked: {error}") from error
            yield

    @contextmanager
    def _back_on_failure(self, journal: Journal, devices: Iterable[str]) -> Iterator[None]:
        """Without Samewire's network in its place, flannel's tunnel has to go on."""
        assert journal.found.conf is not None
        name = journal.found.conf.name
        had = self._applier.network(name) is not None
        try:
            yield
        except SamewireError:
            if not had and not self._has_network(name):
                self._applier.apply(plan.network_back(journal.found, devices))
            raise

    def _has_network(self, name: str) -> bool:
        """Whether Samewire's network is there; false where the daemon does not answer any more."""
        try:
            return self._applier.network(name) is not None
        except Unavailable:
            return False


def _has_tunnel() -> bool:
    with Netlink() as netlink:
        return any(link.name == TUNNEL for link in netlink.dump(link_dump()))
