"""lo: what its settings were is given back, and what could not be done is done by the audit."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from samewire.errors import KernelError
from samewire.node.loopback import Loopback
from samewire.node.losettings import LoSettings

BEFORE = {"accept_local": "0", "route_localnet": "0", "rp_filter": "0"}
SET = {"accept_local": "1", "route_localnet": "1", "rp_filter": "2"}


@pytest.fixture
def lo(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings that lo has."""
    values = dict(BEFORE)

    def write(path: Sequence[str], value: str) -> None:
        values[path[-1]] = value

    monkeypatch.setattr("samewire.kernel.sysctl.read", lambda path: values[path[-1]])
    monkeypatch.setattr("samewire.kernel.sysctl.write", write)
    return values


def test_what_was_there_comes_back(tmp_path: Path, lo: dict[str, str]) -> None:
    settings = LoSettings(tmp_path)
    settings.set()
    assert lo == SET
    assert settings.are_set()
    assert LoSettings(tmp_path).give_back()
    assert lo == BEFORE
    assert not settings.give_back()


def test_what_somebody_has_set_since_comes_back(tmp_path: Path, lo: dict[str, str]) -> None:
    """`sysctl --system` in between: that, and not what was there still earlier."""
    settings = LoSettings(tmp_path)
    settings.set()
    lo["rp_filter"] = "1"
    settings.set()
    assert lo == SET
    settings.give_back()
    assert lo == {**BEFORE, "rp_filter": "1"}


@pytest.mark.parametrize("other", ["later", "../all/accept_local"])
def test_a_note_of_what_is_not_ours_stops_nobody(tmp_path: Path, lo: dict[str, str], other: str) -> None:
    """Of a later build, or damaged: the rest is given back, and the node starts."""
    settings = LoSettings(tmp_path)
    settings.set()
    (tmp_path / "lo.json").write_bytes(msgspec.json.encode({**BEFORE, other: "0"}))
    assert settings.give_back()
    assert lo == BEFORE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("was", ["", "none", "99999999999", "0\n1", "\u0660"])
def test_a_note_of_what_no_setting_can_be_stops_nobody(tmp_path: Path, lo: dict[str, str], was: str) -> None:
    """The kernel would refuse it at each start; the rest is given back."""
    settings = LoSettings(tmp_path)
    settings.set()
    (tmp_path / "lo.json").write_bytes(msgspec.json.encode({**BEFORE, "rp_filter": was}))
    assert settings.give_back()
    assert lo == {**BEFORE, "rp_filter": SET["rp_filter"]}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("note", [b"", b"[]", b'{"rp_filter":1}', b'{"rp_filter":"\xff"}'])
def test_a_note_that_nobody_can_read_stops_nobody(tmp_path: Path, lo: dict[str, str], note: bytes) -> None:
    settings = LoSettings(tmp_path)
    settings.set()
    (tmp_path / "lo.json").write_bytes(note)
    assert not settings.give_back()
    assert lo == SET
    assert not list(tmp_path.iterdir())


class Hooks:
    """Of which one does not give the settings back."""

    def __init__(self) -> None:
        self.is_on = self.fails = False

    def attach_loopback(self) -> None:
        self.is_on = True

    def leave_loopback(self) -> None:
        self.is_on = False
        if self.fails:
            raise KernelError("write rp_filter", errno.EIO)

    def on_loopback(self) -> bool:
        return self.is_on

    def loopback_takes(self) -> bool:
        return self.is_on


def test_what_could_not_be_given_back_is_a_trouble() -> None:
    hooks, wanted, suspect = Hooks(), SimpleNamespace(sctp_ports=1), asyncio.Event()
    nothing = cast(Any, SimpleNamespace(sctp_ports=0))
    loopback = Loopback(cast(Any, hooks), cast(Any, wanted), nothing, suspect)
    loopback.follow()
    assert (hooks.is_on, loopback.trouble()) == (True, "")
    wanted.sctp_ports, hooks.fails = 0, True
    loopback.follow()
    assert suspect.is_set()
    assert loopback.trouble() == "could not be left as it should be"
    hooks.fails = False
    loopback.attach()
    assert loopback.trouble() == ""
