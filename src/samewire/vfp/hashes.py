"""Names made of content: 64 bits of BLAKE2b. Equal content has one name on every node and after every restart."""

from __future__ import annotations

import hashlib


def hash64(content: bytes) -> int:
    """The name of some content; never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def space_name(network_id: str) -> int:
    """The name of a network's IP sets, as a whole."""
    return hash64(f"space {network_id.upper()}".encode())


def set_name(network_id: str, set_id: str) -> int:
    """The name of one IP set."""
    return hash64(f"set {network_id.upper()} {set_id}".encode())
