"""Refuses to start where the database knows less than the node once knew: pods that live would be leftovers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from samewire.counted import counted
from samewire.errors import Conflict, Unavailable
from samewire.hcn.errors import StoreError
from samewire.hcn.store import Store
from samewire.kernel.rtnetlink import Netlink, link_dump
from samewire.node.audit import is_leftover
from samewire.vfp.compile.link import host_name

STARTS: Final = "starts"
"""The counter in the database, and the file in the run directory, which like the pods does not outlive the boot."""


def refuse_to_forget(database: Path) -> None:
    """Raises Conflict when there is no database, but there are pods."""
    if not database.exists():
        _refuse(f"{database} is gone", ())


def count_start(store: Store, run_dir: Path) -> None:
    """Count the start in the database, and note it beside the pins. Raises Conflict, Unavailable.

    A database that has seen fewer is an old copy, or has lost its write-ahead log: what had been in there only is gone,
    and SQLite does not miss it. Conflict when there are pods that it does not know.
    """
    note = run_dir / STARTS
    if store.last_number(STARTS) < _noted(note):
        own = {host_name(endpoint.id) for endpoint in store.state.endpoints()}
        _refuse(f"{store.path} is older than the node (a copy, or without its -wal file)", own)
    try:
        number = store.reserve_numbers(STARTS, 1)
    except StoreError:
        return  # it cannot be written: health says so, and what is there is kept in order
    try:
        note.write_text(f"{number}\n")
    except OSError as error:
        raise Unavailable(str(note), f"cannot be written: {error}") from error


def _noted(note: Path) -> int:
    try:
        return int(note.read_text())
    except (OSError, ValueError):  # none yet, or killed before it was written
        return 0


def _refuse(why: str, own: Collection[str]) -> None:
    with Netlink() as netlink:
        found = (link.name for link in netlink.dump(link_dump()) if is_leftover(link))
        pods = sorted(name for name in found if name not in own)
    if pods:
        raise Conflict(
            f"{why}, and here: {counted(len(pods), 'interface')} of pods ({pods[0]}, ...). Put the state directory "
            "back as it was, or remove them with `samewire uninstall`, and with them the pods' network"
        )
