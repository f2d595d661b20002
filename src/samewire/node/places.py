"""Which network namespace a file is: the identity that is kept with HCN namespaces, over restarts of the daemon."""

from __future__ import annotations

from functools import cache

from samewire.errors import SamewireError
from samewire.hcn.reboot import read_boot_id
from samewire.hcn.schema import Endpoint
from samewire.hcn.switch import StoreView
from samewire.kernel.netns import NetNamespace

_boot_id = cache(read_boot_id)


def identity_text(path: str) -> str:
    """What tells the network namespace in a file from any other, of this boot or another; "" when there is none."""
    try:
        with NetNamespace.shared(path) as netns:
            inode, cookie = netns.identity
    except SamewireError:
        return ""
    return f"{_boot_id()}:{inode}:{cookie}"


def kept_identity(endpoint: Endpoint, view: StoreView) -> tuple[int, int] | None:
    """The network namespace that an endpoint was put into during this boot, None when that is not known."""
    namespace = view.namespace(endpoint.namespace_id) if endpoint.namespace_id else None
    boot, _, numbers = (namespace.netns_identity if namespace is not None else "").partition(":")
    if boot != _boot_id():
        return None
    inode, _, cookie = numbers.partition(":")
    return int(inode), int(cookie)
