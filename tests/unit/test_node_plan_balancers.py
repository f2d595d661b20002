"""Which load balancers a changed network touches."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from samewire.node.plan_balancers import Prefixes
from samewire.vfp.address import parse_prefix

texts = st.sampled_from(["10.244.{}.{}", "fd44:0:{:x}::{:x}", "{}.0.0.{}", "::{:x}:{:x}"])
addresses = st.builds(
    lambda text, a, b: str(ip_address(text.format(a, b))), texts, st.integers(1, 200), st.integers(0, 200)
)
lengths = st.integers(0, 128)
networks = st.builds(
    lambda text, bits: ip_network(f"{text}/{bits % (129 if ':' in text else 33)}", strict=False),
    addresses,
    lengths,
)


@given(st.lists(networks, max_size=20), st.lists(addresses, min_size=1, max_size=20))
def test_prefixes_hold_what_they_hold(prefixes: list[IPv4Network | IPv6Network], asked: list[str]) -> None:
    made = Prefixes([parse_prefix(str(prefix), "$") for prefix in prefixes])
    assert bool(made) is bool(prefixes)
    for address in asked:
        expected = any(ip_address(address) in prefix for prefix in prefixes)
        assert (address in made) is expected
