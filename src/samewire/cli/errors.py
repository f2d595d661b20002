"""How the command line fails: one line on stderr and an exit status that scripts can test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from samewire.errors import NotFound, SamewireError, Unavailable

FAILED: Final = 1
NOT_FOUND: Final = 3
UNREACHABLE: Final = 4


class Failure(click.ClickException):
    """An error that was raised on purpose, on its way out."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click documents it as what subclasses set


@contextmanager
def reported() -> Iterator[None]:
    """Turn a SamewireError into its line and status."""
    try:
        yield
    except SamewireError as error:
        raise Failure(" ".join(f"{error}{_advice(error)}".split()), exit_status(error)) from error


def _advice(error: SamewireError) -> str:
    """What to do when it is the daemon's socket that fails."""
    if not isinstance(error, Unavailable) or not error.service.startswith("samewire at "):
        return ""
    if isinstance(error.__cause__, PermissionError):
        return "; this needs root"
    if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
        return "; no daemon listens there (a lab's: --socket /run/samewire-lab/LAB/NODE/run/samewire.sock)"
    return ""


def exit_status(error: SamewireError) -> int:
    """3 for what does not exist, 4 for a daemon that does not answer, else 1."""
    if isinstance(error, NotFound) or getattr(getattr(error, "code", None), "name", "").endswith(
        "_NOT_FOUND"
    ):
        return NOT_FOUND
    return UNREACHABLE if isinstance(error, Unavailable) else FAILED
