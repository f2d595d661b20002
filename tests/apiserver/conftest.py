"""Fixtures: the worlds of the contract, sources that are closed, certificates made once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from samewire.kube.access import Access
from samewire.kube.api_source import ApiSource
from samewire.kube.auth import CredentialSource, FixedCredential
from samewire.kube.client import KubeClient
from samewire.kube.reflector import Selector, Timing
from samewire.kube.source import Source
from tests.apiserver.certs import Certificates, make_certificates
from tests.apiserver.fake_server import FakeServer
from tests.apiserver.worlds import HASTY, WORLDS, World, open_world

Opener = Callable[..., ApiSource]


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """One origin after the other."""
    async with open_world(request.param, tmp_path) as found:
        yield found


@pytest.fixture
async def source(world: World) -> AsyncIterator[Source]:
    """A source on the world, not started."""
    opened = world.open()
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One authority for all tests."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    """A fake server over plain HTTP."""
    async with FakeServer().serve() as serving:
        yield serving


@pytest.fixture
async def open_api(server: FakeServer) -> AsyncIterator[Opener]:
    """Opens sources on the fake server, and closes them."""
    opened: list[ApiSource] = []

    def open_source(
        credentials: CredentialSource | None = None,
        timing: Timing = HASTY,
        selectors: dict[type, Selector] | None = None,
        answer_timeout_s: float = 20.0,
    ) -> ApiSource:
        access = Access(server.url, credentials or FixedCredential())
        client = KubeClient(access, answer_timeout_s=answer_timeout_s)
        opened.append(ApiSource(client, selectors, timing))
        return opened[-1]

    yield open_source
    for item in opened:
        await item.close()
