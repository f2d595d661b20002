"""libnftables in a process that has much open."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.node import NodeNet, path_of

pytestmark = pytest.mark.root

_SCRIPT = """
import os, resource, sys
from samewire.kernel import nftables
from samewire.kernel.netns import NetNamespace
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 4096) if limit > 0 else 4096, limit))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
with NetNamespace(sys.argv[1]) as pod:
    nftables.change(pod, "add table inet a", "add a table")
    assert nftables.rules(pod, "a") == []
assert all(os.path.sameopenfile(held[0], one) for one in held)
"""


def test_more_than_select_has_room_for(net: NodeNet) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, path_of(net.pod())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
