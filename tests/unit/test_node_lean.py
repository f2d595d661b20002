"""The daemon's imports: what it does not need stays out, and nothing of how that is done stays behind."""

from __future__ import annotations

import os
import subprocess
import sys


def _python(code: str, **environment: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()


def test_the_daemon_loads_no_library_it_does_not_use() -> None:
    code = "import sys, samewire.node.lean, samewire.node.daemon; print(*sys.modules)"
    assert {"rich", "pygments", "prometheus_client", "aiohttp"}.isdisjoint(_python(code).split())


def test_the_servers_load_no_library_they_do_not_use() -> None:
    code = "import sys, samewire.node.lean, samewire.node.servers; print(*sys.modules)"
    assert {"rich", "pygments", "prometheus_client"}.isdisjoint(_python(code).split())


def test_others_find_what_was_hidden() -> None:
    code = (
        "import os, samewire.node.lean, samewire.node.lean_http, rich.console; "
        "print(os.environ.get('SSL_CERT_FILE'), rich.__name__)"
    )
    assert _python(code) == "None rich"
    assert _python(code, SSL_CERT_FILE="/etc/mine.pem") == "/etc/mine.pem rich"


def test_what_was_imported_before_is_left_alone() -> None:
    code = "import rich.console, structlog.dev as dev, samewire.node.lean; print(dev.rich is rich)"
    assert _python(code) == "True"
    code = "import rich, sys, samewire.node.lean; print(sys.modules['rich'] is rich)"
    assert _python(code) == "True"
