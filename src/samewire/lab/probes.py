"""Probes, what is expected of them, and the verdict over what came back (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

#: Bytes. The large ones do not fit one packet of any underlay: fragments for UDP, segments for TCP.
SMALL_BYTES, LARGE_UDP_BYTES, LARGE_TCP_BYTES = 64, 12_000, 200_000
# An answer that comes is waited for long: a loaded machine may stand still for seconds. Silence cannot be waited for.
ANSWER_TIMEOUT_S, SILENCE_TIMEOUT_S = 10.0, 0.7
# No router fragments IPv6: a sender's first large datagram may do no more than teach it the path's MTU.
_TRIES = {"tcp": 1, "http": 1, "connect": 1, "udp": 3, "icmp": 3}


class Expected(Struct, frozen=True):
    """What a probe should bring. Empty ``hostname``, ``container`` or ``sources``: nothing to compare.

    ``sources``: the addresses that the far side may see as the client's; more than one where the model leaves
    the choice to the node (which of its own addresses it uses towards a pod). ``hostnames``: any of these may answer.
    """

    reachable: bool = True
    hostname: str = ""
    container: str = ""
    sources: tuple[str, ...] = ()
    hostnames: tuple[str, ...] = ()


class Probe(Struct, frozen=True):
    """One cell of the matrix. ``source`` and ``target`` are names of agents (``target`` empty: none is
    there).

    ``category``, ``row`` and ``column`` place it in the table.
    """

    category: str
    row: str
    column: str
    source: str
    target: str
    protocol: str
    address: str
    port: int
    expected: Expected

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4

    def wire(self, number: int) -> dict[str, Any]:
        """The probe as its agent reads it."""
        large = self.column.endswith("+")
        size = SMALL_BYTES if not large else LARGE_UDP_BYTES if self.protocol == "udp" else LARGE_TCP_BYTES
        answered = self.expected.reachable
        return {
            "id": number,
            "protocol": self.protocol,
            "address": self.address,
            "port": self.port,
            "size": size,
            "timeout_s": ANSWER_TIMEOUT_S if answered else SILENCE_TIMEOUT_S,
            "tries": _TRIES[self.protocol] if answered else 1,
        }


class Observed(Struct, frozen=True):
    """What a probe brought."""

    reachable: bool
    hostname: str = ""
    container: str = ""
    source: str = ""
    error: str = ""
    tries: int = 1


class Cell(Struct, frozen=True):
    """A probe with its verdict; ``why`` is empty when it is as expected."""

    probe: Probe
    observed: Observed
    why: str

    @property
    def ok(self) -> bool:
        """Is it as expected?"""
        return not self.why


def observe(result: Mapping[str, Any], seen: Mapping[str, str]) -> Observed:
    """An agent's result as an observation; ``seen`` maps ICMP tokens to the source the far side saw."""
    reply = result.get("reply") or {}
    source = reply.get("client", {}).get("address", "")
    if "token" in result:
        source = seen.get(result["token"], "")
    return Observed(
        reachable=bool(result["ok"]),
        hostname=reply.get("hostname", ""),
        container=reply.get("container", ""),
        source=source,
        error=result.get("error", ""),
        tries=result.get("tries", 1),
    )


def judge(probe: Probe, observed: Observed) -> Cell:
    """Compare; the sentence says what is wrong in the reader's words."""
    expected = probe.expected
    why = ""
    if observed.reachable and not expected.reachable:
        why = f"answered{f' by {observed.hostname}' if observed.hostname else ''}; it must not be reachable"
    elif not observed.reachable and expected.reachable:
        why = observed.error or "no answer"
    elif expected.reachable:
        why = _difference(expected, observed)
    return Cell(probe, observed, why)


def _difference(expected: Expected, observed: Observed) -> str:
    if expected.hostname and observed.hostname != expected.hostname:
        return f"answered by {observed.hostname or 'nobody known'}, expected {expected.hostname}"
    if expected.hostnames and observed.hostname not in expected.hostnames:
        return (
            f"answered by {observed.hostname or 'nobody known'}, expected {' or '.join(expected.hostnames)}"
        )
    if expected.container and observed.container != expected.container:
        return f"answered by container {observed.container}, expected {expected.container}"
    if expected.sources and observed.source not in expected.sources:
        wanted = " or ".join(expected.sources)
        return f"the far side saw {observed.source or 'nothing'}, expected {wanted}"
    return ""
