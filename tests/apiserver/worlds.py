"""Where the contract is tested: a fake server, a directory of manifests, a real server.

A world changes objects at the origin and opens sources on it; a test cannot tell which one it is in.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from samewire.kube.access import Access
from samewire.kube.api_source import ApiSource
from samewire.kube.auth import FixedCredential, Pem
from samewire.kube.client import KubeClient
from samewire.kube.errors import ApiError
from samewire.kube.kubeconfig import load_kubeconfig
from samewire.kube.manifests import ManifestSource
from samewire.kube.model import EndpointSlice, Pod, Service
from samewire.kube.reflector import Selector, Timing
from samewire.kube.source import Source
from samewire.kube.wire import PATHS
from tests.apiserver.certs import SERVER_NAME, make_certificates
from tests.apiserver.fake_server import FakeServer
from tests.apiserver.fake_store import Json
from tests.apiserver.objects import KIND_OF, RESOURCE_OF, plain

REAL = os.environ.get("SAMEWIRE_TEST_KUBECONFIG", "")
WORLDS = ("fake", "manifests", "real") if REAL else ("fake", "manifests")

_LABEL = "samewire.io/contract"

PATIENT = Timing(page_size=3)
"""As a daemon has it, but for small pages."""

HASTY = Timing(
    page_size=3, watch_min_s=60, watch_max_s=120, silence_s=20, backoff_first_s=0.005, backoff_longest_s=0.05
)
"""For tests in which things go wrong often."""


class World(ABC):
    """One origin of objects, with a namespace of the test's own."""

    namespace = "contract"

    @abstractmethod
    def open(self) -> Source:
        """A new source, not started; it sees the namespace of the test (and all that has none)."""

    @abstractmethod
    async def put(self, item: Json) -> None:
        """Create or replace an object."""

    @abstractmethod
    async def delete(self, item: Json) -> None:
        """Delete an object."""


class ApiWorld(World):
    """An API server, changed through plain HTTP.

    Its objects carry a label, by which sources find them. The field ``metadata.namespace`` would not do: API servers
    (1.36 among them) forget it from a list's second page on, and lose what is on the way.
    """

    def __init__(self, access: Access, namespace: str) -> None:
        self.access = access
        self.namespace = namespace
        self.client = KubeClient(access)

    def open(self) -> Source:
        mine = Selector(labels=f"{_LABEL}={self.namespace}")
        return ApiSource(KubeClient(self.access), dict.fromkeys((Service, EndpointSlice, Pod), mine), PATIENT)

    async def put(self, item: Json) -> None:
        home, name = self._home(item), item["metadata"]["name"]
        labels = {**item["metadata"].get("labels", {}), _LABEL: self.namespace}
        item = {**item, "metadata": {**item["metadata"], "labels": labels}}
        try:
            await self.client.request("POST", home, body=item)
        except ApiError as error:
            if error.status != 409:
                raise
            current = json.loads(await self.client.request("GET", f"{home}/{name}"))
            await self.client.request("PUT", f"{home}/{name}", body=_merged(current, item))

    async def delete(self, item: Json) -> None:
        await self.client.request("DELETE", f"{self._home(item)}/{item['metadata']['name']}")

    @staticmethod
    def _home(item: Json) -> str:
        prefix = PATHS[KIND_OF[item["kind"]]].rpartition("/")[0]
        namespace = item["metadata"].get("namespace")
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{prefix}{scope}/{RESOURCE_OF[item['kind']]}"


class ManifestWorld(World):
    """A directory with a file an object."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> Source:
        return ManifestSource(self.directory, (ipaddress.ip_network("10.96.0.0/16"),), interval_s=0.01)

    async def put(self, item: Json) -> None:
        path = self._path(item)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(item))
        draft.replace(path)

    async def delete(self, item: Json) -> None:
        self._path(item).unlink()

    def _path(self, item: Json) -> Path:
        return self.directory / f"{item['kind']}-{item['metadata']['name']}.json"


@asynccontextmanager
async def open_world(name: str, directory: Path) -> AsyncIterator[World]:
    """The world of this name; it is empty, and gone afterwards."""
    if name == "manifests":
        yield ManifestWorld(directory)
    elif name == "fake":
        certificates = make_certificates(directory)
        server = FakeServer()
        server.tokens = {"secret"}
        async with server.serve(certificates.server_context()):
            ca = Pem("ca", file=certificates.ca)
            access = Access(server.url, FixedCredential("secret"), ca=ca, server_name=SERVER_NAME)
            async with contextlib.aclosing(_Closing(ApiWorld(access, "contract"))) as holder:
                yield holder.world
    else:
        async with _real_namespace(load_kubeconfig(Path(REAL))) as world:
            yield world


class _Closing:
    def __init__(self, world: ApiWorld) -> None:
        self.world = world

    async def aclose(self) -> None:
        await self.world.client.close()


@asynccontextmanager
async def _real_namespace(access: Access) -> AsyncIterator[World]:
    """A namespace of its own on a real server.

    Its objects are deleted one by one: without a controller manager a namespace stays, and its Services would keep
    their cluster IPs and node ports.
    """
    world = ApiWorld(access, f"samewire-{uuid.uuid4().hex[:8]}")
    client, home = world.client, "/api/v1/namespaces"
    try:
        await client.request("POST", home, body=plain("Namespace", world.namespace))
        try:
            yield world
        finally:
            for resource in ("/api/v1", "services"), ("/apis/discovery.k8s.io/v1", "endpointslices"):
                inside = f"{resource[0]}/namespaces/{world.namespace}/{resource[1]}"
                for item in json.loads(await client.request("GET", inside))["items"]:
                    with contextlib.suppress(ApiError):  # slices go with their Service
                        await client.request("DELETE", f"{inside}/{item['metadata']['name']}")
            await client.request("DELETE", f"{home}/{world.namespace}")
    finally:
        await client.close()


def _merged(current: Json, item: Json) -> Json:
    """An update as a server accepts it: with the present version, and what the server itself has added."""
    metadata = {**current["metadata"], **item["metadata"]}
    merged = {**current, **item, "metadata": metadata}
    if "spec" in item:
        merged["spec"] = {**current.get("spec", {}), **item["spec"]}
    return merged
