"""A directory of manifests: which files changed, and what is in them.

A file that cannot be read as a whole (no YAML, an object that is malformed) counts as it was before; that is said
once a version of the file. A file that is being written in place is read when it has stood still from one look to the
next; one that was renamed into place is read at once.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from msgspec import Struct

from samewire.kube.admission import Wanted, WantedSpec
from samewire.kube.mirror import Endpoints
from samewire.kube.model import EndpointSlice, Namespace, Node, Object, Pod, Service
from samewire.kube.wire import API_VERSIONS
from samewire.kube.yamltext import load_yaml, split_documents, without_nulls

log = structlog.get_logger(__name__)

_LINK_LOCAL_MULTICAST = {4: ipaddress.ip_network("224.0.0.0/24"), 6: ipaddress.ip_network("ff02::/16")}
_KINDS: Final[dict[tuple[str, str], type[Object | Endpoints]]] = {
    ("v1", "Endpoints"): Endpoints,
    **{(API_VERSIONS[kind], kind.__name__): kind for kind in (EndpointSlice, Namespace, Node, Pod, Service)},
}
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._:]{0,251}[A-Za-z0-9])?")

Stamp = tuple[int, int, int]


class FileContent(Struct, frozen=True):
    """What one file holds of our kinds."""

    services: tuple[Wanted, ...] = ()
    others: tuple[EndpointSlice | Endpoints | Namespace | Node | Pod, ...] = ()


class _File:
    """One file, as last read and as last seen."""

    def __init__(self) -> None:
        self.read_stamp: Stamp | None = None
        self.seen_stamp: Stamp | None = None
        self.content = FileContent()
        self.was_read = False


class ManifestDirectory:
    """The manifests of one directory; only regular files are read, and no hidden ones."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, _File] = {}
        self._unseen: set[str] = set()
        self._changed = False
        self.faults = 0

    @property
    def unread(self) -> bool:
        """Whether there is a file that has not been read yet in any version: nobody knows what it holds."""
        return not self._unseen <= self._files.keys() or not all(
            file.was_read for file in self._files.values()
        )

    def scan(self) -> bool:
        """Look for changes; returns whether there were any. Raises OSError if the directory cannot be read."""
        stamps = dict(self._stamps())
        gone = self._files.keys() - stamps.keys()
        for name in gone:
            del self._files[name]
        self._changed |= bool(gone)
        for name in sorted(stamps):  # what has changed is kept, should a later one be more than we can read
            self._changed |= self._look(name, stamps[name])
        changed, self._changed = self._changed, False
        return changed

    def contents(self) -> list[FileContent]:
        """What all files hold, in the order of their names."""
        return [self._files[name].content for name in sorted(self._files)]

    def _stamps(self) -> Iterator[tuple[str, Stamp]]:
        with os.scandir(self._directory) as entries:
            unseen, self._unseen = self._unseen, set()
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.endswith(_SUFFIXES):
                    continue
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    continue  # renamed or removed since
                except OSError as error:
                    self._unseen.add(entry.name)
                    yield from self._as_before(entry.name, error, said=entry.name in unseen)
                    continue
                if not stat.S_ISREG(found.st_mode):
                    continue  # a FIFO would be waited for
                yield entry.name, (found.st_ino, found.st_ctime_ns, found.st_size)

    def _as_before(self, name: str, error: OSError, *, said: bool) -> Iterator[tuple[str, Stamp]]:
        """A file of which nothing can be found out, such as a link in a circle. It keeps none of the others."""
        if not said:
            log.warning("manifest not read; what it said before stays", file=name, reason=str(error))
        known = self._files.get(name)
        if known is not None and known.read_stamp is not None:
            yield name, known.read_stamp

    def _look(self, name: str, stamp: Stamp) -> bool:
        file = self._files.setdefault(name, _File())
        if stamp == file.read_stamp:
            return False
        is_same_inode = file.read_stamp is not None and file.read_stamp[0] == stamp[0]
        is_settled = stamp == file.seen_stamp
        file.seen_stamp = stamp
        if is_same_inode and not is_settled:
            return False
        file.read_stamp = stamp
        try:
            file.content = parse_manifests((self._directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.faults += 1
            log.warning("manifest not read; what it said before stays", file=name, reason=str(error))
            return False
        file.was_read = True
        return True


def parse_manifests(text: str) -> FileContent:
    """The objects of our kinds in a file. Raises ValueError with the line of the document and the field."""
    services: list[Wanted] = []
    others: list[Any] = []
    for line, document in split_documents(text):
        try:
            for raw in _flatten(load_yaml(document)):
                _read(raw, services, others)
        except (ValueError, msgspec.ValidationError) as error:
            raise ValueError(f"document at line {line}: {error}") from None
    return FileContent(tuple(services), tuple(others))


def _flatten(loaded: Any) -> Iterator[dict[str, Any]]:
    """The objects of a document: a ``List`` (or ``ServiceList``, ...) holds several."""
    if loaded is None:
        return
    if not isinstance(loaded, dict):
        raise ValueError("is not a Kubernetes object")
    if str(loaded.get("kind", "")).endswith("List") and isinstance(loaded.get("items"), list):
        item_kind = {"kind": loaded["kind"][:-4], "apiVersion": loaded.get("apiVersion")}
        for item in loaded["items"]:
            yield from _flatten({**item_kind, **item} if isinstance(item, dict) else item)
    else:
        yield loaded


def _read(raw: dict[str, Any], services: list[Wanted], others: list[Any]) -> None:
    kind = _KINDS.get((str(raw.get("apiVersion")), str(raw.get("kind"))))
    if kind is None:
        return
    cleaned = without_nulls(raw)
    metadata = cleaned.setdefault("metadata", {})
    if (
        kind is Pod
        and isinstance(metadata, dict)
        and not metadata.get("name")
        and metadata.get("generateName")
    ):
        return  # one that runs has a name
    if not isinstance(metadata, dict) or not _NAME.fullmatch(str(metadata.get("name", ""))):
        raise ValueError(f"{kind.__name__} without a valid metadata.name")
    if kind in (Node, Namespace):
        metadata.pop("namespace", None)
    else:
        metadata.setdefault("namespace", "default")
    metadata.pop("resourceVersion", None)
    found: Any = msgspec.convert(cleaned, kind)
    _check_addresses(found)
    if kind is Service:
        services.append(Wanted(found, msgspec.convert(cleaned.get("spec", {}), WantedSpec)))
    else:
        others.append(found)


def _check_addresses(found: Object | Endpoints) -> None:
    """As an API server does: none that is no address, and none of those that mean another place on every machine."""
    if isinstance(found, Pod):
        _parsed("addresses", found.addresses)
    elif isinstance(found, Endpoints):
        _of_one_machine("addresses", found.addresses)
    elif isinstance(found, EndpointSlice) and found.address_type != "FQDN":
        _of_one_machine("addresses", [text for one in found.endpoints for text in one.addresses])
    elif isinstance(found, Service):
        _parsed("clusterIPs", found.cluster_ips)
        _parsed("ingress", [one.ip for one in found.status.load_balancer.ingress if one.ip])
        _of_one_machine("externalIPs", found.spec.external_ips)


def _of_one_machine(field: str, texts: Iterable[str]) -> None:
    """By the rule of API servers: for what they refuse a whole file counts as it was. Multicast that is routed they
    take; then only the Service is refused (`samewire.kube.addresses`).
    """
    for text, address in _parsed(field, texts):
        near = (
            address.is_loopback or address.is_link_local or address in _LINK_LOCAL_MULTICAST[address.version]
        )
        if near or address.is_unspecified or "%" in text:
            raise ValueError(f"{field}: {text!r} is no single machine's address")


def _parsed(
    field: str, texts: Iterable[str]
) -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    try:
        return [(text, ipaddress.ip_address(text)) for text in texts]
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
