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
