"""The lab's tables on a narrow terminal."""

from __future__ import annotations

import msgspec
import pytest
from rich.console import Console, RenderableType

from samewire.cli.lab import _console as cli_console
from samewire.lab.report import lab_tables, top_table
from samewire.lab.top import PodUsage
from tests.support.lab import lab_state


def lines(table: RenderableType, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 140])
def test_names_and_addresses_are_whole(width: int) -> None:
    state = lab_state("mixed-cluster")
    shown = lines(lab_tables(state), width)
    words = {word for line in shown for word in line.split()}
    names = {pod.pod.key for pod in state.pods} | {node.plan.name for node in state.nodes}
    addresses = {address for pod in state.pods for address in pod.addresses}
    assert max(map(len, shown)) <= width
    assert names | addresses <= words


@pytest.mark.parametrize(
    ("pod", "width", "figures"),
    [
        ("shop/web-mkmpvm6kb-wprw4", 80, "pod node running CPU % memory rx/s tx/s"),
        ("default/redis-follower-2w5rff5bc-mm7z5", 80, "pod node CPU % memory rx/s tx/s"),
        ("a-namespace/of-a-long-deployment-2w5rff5bc-mm7z5", 80, "pod CPU % memory rx/s tx/s"),
        ("shop/web-mkmpvm6kb-wprw4", 140, "memory rx/s tx/s rx tx"),
        (
            "a-namespace/of-a-deployment-with-a-name-2w5rff5bc-mm7z5",
            120,
            "pod node running CPU % memory rx/s tx/s",
        ),
    ],
)
def test_usage_fits(pod: str, width: int, figures: str) -> None:
    """What does not is left out by whole columns, and said by none that are cut."""
    usage = PodUsage(
        pod=pod,
        node="alpha",
        qos="Guaranteed",
        oom_score_adj=-997,
        containers=2,
        running=2,
        cpu_s=1234.56,
        cpu_percent=100.0,
        memory_bytes=11 * 2**20,
        rx_bytes=2**30,
        tx_bytes=2**30,
        rx_bytes_per_s=1000.0,
        tx_bytes_per_s=2**29,
    )
    shown = lines(top_table([usage], width), width)
    assert max(map(len, shown)) <= width
    assert figures in " ".join(" ".join(shown).split())
    assert usage.pod in shown[-2].split()


def test_what_looks_like_an_emoji_or_a_style_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    state = lab_state("mixed-cluster")
    addresses = ("fd00:100::2", "fd00:a:b::3", "[fd00::4]:80")
    pods = tuple(msgspec.structs.replace(pod, addresses=addresses) for pod in state.pods[:1])
    cli_console().print(lab_tables(msgspec.structs.replace(state, pods=pods)), *addresses)
    shown = capsys.readouterr().out
    assert all(shown.count(address) == 2 for address in addresses)
