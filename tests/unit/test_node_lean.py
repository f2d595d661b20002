"""The daemon's imports: what it does not need stays out, and nothing of how that is done stays behind."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from importlib import import_module
from typing import cast

import pytest

from samewire.node.lean import late_patterns
from samewire.node.package import Package
from samewire.node.tools import TOOLS, tool_routes
from samewire.node.toolview import ToolView


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


def test_the_client_waits_until_it_is_asked_for() -> None:
    code = (
        "import sys, samewire.node.lean_http, samewire.node.servers; before = 'aiohttp.client' in sys.modules; "
        "import aiohttp; from aiohttp import ClientSession, web; from importlib.metadata import version; "
        "print(before, ClientSession.__module__, web is aiohttp.web, aiohttp.__version__ == version('aiohttp'), "
        "len(aiohttp.connector._SSL_CONTEXT_VERIFIED.get_ca_certs()))"
    )
    assert _python(code) == "False aiohttp.client True True 0"


def test_a_server_knows_its_version_without_the_client() -> None:
    code = (
        "import sys, samewire.node.lean_http; from importlib.metadata import version; from aiohttp import http; "
        "print(version('aiohttp') in http.SERVER_SOFTWARE, 'aiohttp.client' in sys.modules)"
    )
    assert _python(code) == "True False"


def test_what_is_put_off_is_there_when_it_is_asked_for() -> None:
    code = (
        "import sys, samewire.node.lean_http; late = sys.modules['attr.validators']; before = 'in_' in vars(late); "
        "import attr; from attrs import validators; from attr.validators import in_; "
        "print(before, attr.validators is late, validators.in_ is in_, type(late).__name__)"
    )
    assert _python(code) == "False True True module"
    code = "import attr.validators as one, sys, samewire.node.lean_http; print(sys.modules['attr.validators'] is one)"
    assert _python(code) == "True"


def test_patterns_are_compiled_when_they_are_used() -> None:
    with late_patterns():
        word, bytes_word = re.compile(r"(?P<head>\w)\w*", re.ASCII), re.compile(rb"\w+")
        wrong = re.compile("(")
    assert "match" not in vars(word)
    assert re.compile("a") is re.compile("a")  # as ever
    assert isinstance(word, re.Pattern)
    assert word.pattern == r"(?P<head>\w)\w*"
    found = word.fullmatch("abc")
    assert found is not None
    assert found["head"] == "a"
    assert word.fullmatch("äbc") is None
    assert re.sub(word, "-", "ab cd") == "- -"
    assert bytes_word.findall(b"ab cd") == [b"ab", b"cd"]
    assert copy.deepcopy(word).groups == 1
    with pytest.raises(re.error):
        wrong.match("")


def test_the_start_compiles_few_patterns() -> None:
    code = (
        "from samewire.node.lean import late_patterns, _LatePattern\n"
        "with late_patterns():\n import gc, samewire.node.daemon, samewire.node.lean_http, samewire.node.servers\n"
        "found = [o for o in gc.get_objects() if type(o) is _LatePattern]\n"
        "print(len(found) > 50, sum(len(vars(o)) > 2 for o in found) < 10)"
    )
    assert _python(code) == "True True"


def test_the_tools_wait_until_they_are_asked_for() -> None:
    code = (
        "import sys, samewire.node.lean, samewire.node.lean_http, samewire.node.servers; print(*sys.modules)"
    )
    loaded = set(_python(code).split())
    assert loaded.isdisjoint(TOOLS.values())
    assert not any(name.startswith("samewire.vfp.simulate") for name in loaded)


def test_every_endpoint_of_the_tools_is_there() -> None:
    """What each of their modules offers, by method and path, and nothing else."""
    view = cast(ToolView, object())
    offered = [route for module in set(TOOLS.values()) for route in import_module(module).routes(view)]
    assert {(route.method, route.path) for route in offered} == {
        (route.method, route.path) for route in tool_routes(view, cast(Package, object()))
    }
