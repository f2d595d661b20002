"""What a node must remember besides its objects: the MACs of its own devices, and settings to give back.

A small JSON file in the state directory, replaced as a whole. MACs outlive the devices: other nodes know this
one by its distributed router's MAC.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from samewire.errors import Unavailable

FILE_NAME = "node.json"


class Keepsakes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``*_mac`` in colon form. ``vxlan_port``: that of swvxlan0, 0 before it was made.
    ``reserved_ports_added``: what we added to ip_local_reserved_ports.
    """

    tunnel_mac: str
    host_mac: str
    host_peer_mac: str
    vxlan_port: int = 0
    reserved_ports_added: str = ""


def load_keepsakes(state_dir: Path, **macs: str) -> Keepsakes:
    """Read the file, or draw new values and write it. Raises ``Unavailable`` when that is not possible.

    ``macs``: of devices that are there already; they are taken over where the file has been lost.
    """
    found = find_keepsakes(state_dir)
    if found is None:
        drawn = Keepsakes(tunnel_mac=_new_mac(), host_mac=_new_mac(), host_peer_mac=_new_mac())
        found = msgspec.structs.replace(drawn, **macs)
        save_keepsakes(state_dir, found)
    return found


def find_keepsakes(state_dir: Path) -> Keepsakes | None:
    """Read the file; None when there is none. Raises ``Unavailable`` when it cannot be read."""
    path = state_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Keepsakes)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise Unavailable(str(path), f"cannot be read: {error}") from error


def save_keepsakes(state_dir: Path, keepsakes: Keepsakes) -> None:
    """Write the file, whole or not at all. Raises ``Unavailable``."""
    path = state_dir / FILE_NAME
    new = path.with_name(FILE_NAME + ".new")
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(keepsakes)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        raise Unavailable(str(path), f"cannot be written: {error}") from error


def mac_bytes(text: str) -> bytes:
    """Six bytes from the colon form."""
    return bytes.fromhex(text.replace(":", ""))


def _new_mac() -> str:
    """A random locally administered unicast MAC."""
    raw = bytearray(secrets.token_bytes(6))
    raw[0] = (raw[0] & 0xFC) | 0x02
    return raw.hex(":")
