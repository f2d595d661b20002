"""The node's resolver settings, as pods can use them."""

from __future__ import annotations

from pathlib import Path

from samewire.hcn.schema import Dns
from samewire.node.resolver import node_dns, parse_resolv_conf

STUB = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n"
REAL = """# comment
nameserver 10.0.0.1 ; main
nameserver fd00::1
nameserver fe80::1%eth0
nameserver x
search a.b c.d
domain e.f
"""


def test_a_resolv_conf() -> None:
    assert parse_resolv_conf(REAL) == Dns(
        server_list=("10.0.0.1", "fd00::1"), search=("a.b", "c.d"), domain="e.f"
    )
    assert parse_resolv_conf(STUB).server_list == ()
    assert parse_resolv_conf("") == Dns()


def test_a_stub_is_looked_behind(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text(STUB)
    assert node_dns((stub, real)) == Dns()
    real.write_text(REAL)
    assert node_dns((tmp_path / "none", stub, real)).server_list == ("10.0.0.1", "fd00::1")
