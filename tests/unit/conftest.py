"""An HNS service on a store of its own, with a switch that only writes down what it is told; a user-mode relay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.proxy.relay import Relay
from tests.support.hcn import FakeSwitch


@pytest.fixture
def switch() -> FakeSwitch:
    return FakeSwitch()


@pytest.fixture
def service(tmp_path: Path, switch: FakeSwitch) -> Iterator[HnsService]:
    store = Store(tmp_path / "hns.db")
    yield HnsService(store, switch)
    store.close()


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    """A relay of the test alone."""
    one = Relay(tmp_path / "relay.sock")
    yield one
    await one.stop()
