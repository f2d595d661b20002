"""The daemon's log, in a process of its own: it is configured once for all of it."""

from __future__ import annotations

import json
import subprocess
import sys

_SAY = """
import logging
from samewire.node.daemon import configure_logging

configure_logging()
log = logging.getLogger("some.library")
log.warning("of %s", "note")
log.info("not of note")
try:
    raise LookupError("what")
except LookupError:
    log.exception("it failed")
"""


def test_what_libraries_say_is_in_our_form() -> None:
    said = subprocess.run([sys.executable, "-c", _SAY], capture_output=True, check=True)
    first, second = (json.loads(line) for line in said.stderr.splitlines())
    assert (first["event"], first["level"], first["of"]) == ("of note", "warning", "some.library")
    assert (second["event"], second["level"]) == ("it failed", "error")
    assert second["exception"].endswith("LookupError: what")


_GO_ON = """
import logging
import structlog
from samewire.node.daemon import configure_logging

configure_logging()
for _ in range(100):
    structlog.get_logger().info("a pod has come", text=100 * "x")
    logging.getLogger("some.library").warning("of note")
print("goes on")
"""


def test_who_cannot_write_its_log_goes_on() -> None:
    """A full disk, or a reader that has gone: what is told of has happened all the same."""
    with open("/dev/full", "wb") as full:
        said = subprocess.run(
            [sys.executable, "-c", _GO_ON], stdout=subprocess.PIPE, stderr=full, check=False
        )
    assert said.stdout == b"goes on\n"
