"""Ids of the load balancers that services become: the same at every start, so that a restart finds its own."""

from __future__ import annotations

from hashlib import sha1
from typing import Final
from uuid import UUID

from samewire.kube.model import Key

OWNER: Final = "samewire-proxy"

_VARIANTS: Final = dict(zip("0123456789ABCDEF", "89AB" * 4, strict=True))
_NAMESPACE: Final = sha1(UUID("8e0c9f3a-5f0e-4d0c-9f4e-3b8a1d5c6e21").bytes)


def load_balancer_id(service: Key, kind: str, address: str, family: int, port: int, protocol: str) -> str:
    """The id of the load balancer for one virtual address and port (RFC 9562, version 5, upper case).

    The name of the service's port is no part of it: an edit that only renames it must leave connections alone.
    """
    state = _NAMESPACE.copy()
    state.update(f"{service[0]}/{service[1]}|{kind}|{address}|{family}|{port}|{protocol}".encode())
    digits = state.hexdigest().upper()
    variant = _VARIANTS[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def service_name(service: Key, port: str) -> str:
    """How tools and metrics call a service port."""
    name = f"{service[0]}/{service[1]}"
    return f"{name}:{port}" if port else name


def service_key(name: str) -> Key | None:
    """The key of the service in a service name; None for what is no such name."""
    namespace, slash, rest = name.partition("/")
    service = rest.partition(":")[0]
    return (namespace, service) if slash and namespace and service else None
