"""What all objects together want of the kernel, and who wants what."""

from __future__ import annotations

from samewire.node.bindings import BindingChange, HostBindings
from samewire.node.planning import Owner
from samewire.vfp.diff import Operation
from samewire.vfp.model import Compiled
from samewire.vfp.ownership import Ownership


class Wanted:
    """What all objects together want: table entries and the node's own stack, with their owners."""

    def __init__(self) -> None:
        self.entries = Ownership()
        self.bindings = HostBindings()

    def replace(self, owner: Owner, compiled: Compiled) -> tuple[list[Operation], list[BindingChange]]:
        """Make ``compiled`` what ``owner`` wants; returns what has to be done for it."""
        return (
            self.entries.replace(owner, compiled.entries, compiled.edit),
            self.bindings.replace(owner, compiled.binding),
        )

    def held(self, owner: Owner) -> Compiled:
        """What an owner wants now."""
        return Compiled(self.entries.entries(owner), self.bindings.held(owner))
