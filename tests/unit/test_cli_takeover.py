"""What ``samewire takeover`` shows, and how it reads the node's own tools."""

from __future__ import annotations

import pytest

from samewire.cli.takeover import _Shown
from samewire.errors import KernelError, Unavailable
from samewire.takeover.iptables import old_rules
from samewire.takeover.model import Command, Found, Hop, Setting, Step
from samewire.takeover.system import run


def test_what_looks_like_an_emoji_or_a_style_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = Found(hops=(Hop("fd00:100::/64", "fd00:a:b::1"),))
    steps: list[Step] = [
        Command("routes to fd00:100::/64 go", ("ip", "-6"), "[fd00:a::1]"),
        Setting("[bold]", "net/x", ":100:"),
    ]
    shown = _Shown(as_json=False)
    shown.found(found)
    shown.plan(found, steps)
    shown.step(steps[0])
    assert capsys.readouterr().out.splitlines() == [
        "Found",
        "  pods fd00:100::/64 via fd00:a:b::1",
        "Steps (nothing has been changed)",
        "  1  routes to fd00:100::/64 go",
        "       $ ip -6",
        "         [fd00:a::1]",
        "  2  [bold]",
        "       net/x = :100:",
        "  1  routes to fd00:100::/64 go",
    ]


def test_a_tool_may_print_any_bytes() -> None:
    assert run(["printf", r"\303\244 \344\n"]) == "ä \\xe4\n"
    assert run(["cat"], "ä") == "ä"


def test_a_tool_that_is_not_there_or_fails() -> None:
    with pytest.raises(Unavailable, match="is not installed"):
        run(["/no/such/tool"])
    with pytest.raises(KernelError, match="no such file"):
        run(["sh", "-c", "echo no such file >&2; exit 1"])


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_comment_may_hold_what_python_takes_for_the_end_of_a_line(end: str) -> None:
    saved = "\n".join(
        (
            "*nat",
            ":PREROUTING ACCEPT [0:0]",
            ":KUBE-SERVICES - [0:0]",
            f'-A PREROUTING -m comment --comment "mine{end}own" -j ACCEPT',
            "-A PREROUTING -j KUBE-SERVICES",
            "COMMIT\n",
        )
    )
    (found,) = old_rules("iptables-nft", saved, "")
    assert (found.chains, found.rules) == (("KUBE-SERVICES",), ("-A PREROUTING -j KUBE-SERVICES",))
