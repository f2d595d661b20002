"""What every kept Kubernetes object has."""

from __future__ import annotations

from sys import intern
from typing import Generic, Literal, TypeVar

from msgspec import Struct
from msgspec.structs import force_setattr

Key = tuple[str, str]
"""(namespace, name) of an object; the namespace of a Node or Namespace is empty."""

Protocol = Literal["TCP", "UDP", "SCTP"]


def keep_once(value: Struct, *names: str) -> None:
    """Replace strings in a new struct by their interned twins."""
    for name in names:
        text = getattr(value, name)
        if text:
            force_setattr(value, name, intern(text))


class Metadata(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """What every object has."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""

    def __post_init__(self) -> None:
        if self.namespace:
            force_setattr(self, "namespace", intern(self.namespace))


MetadataT_co = TypeVar("MetadataT_co", bound=Metadata, covariant=True)


class KubeObject(Struct, Generic[MetadataT_co], frozen=True, gc=False, omit_defaults=True):
    """Base of the kinds below."""

    metadata: MetadataT_co

    @property
    def key(self) -> Key:
        """(namespace, name)."""
        return (self.metadata.namespace, self.metadata.name)
