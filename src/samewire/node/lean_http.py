"""Imports aiohttp's server without its client, which is half of the package, and makes the client wait until somebody
asks for it (who talks to an API server does). The client reads the machine's certificates twice when it is imported,
which nobody here needs: who talks to an API server says what it trusts.

Import this module before anything that imports aiohttp.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_CERTIFICATES: Final = "SSL_CERT_FILE"


@contextmanager
def _certificates_unread() -> Iterator[None]:
    """Within, the one file of all certificates counts as empty; those found by their names still count."""
    before = os.environ.get(_CERTIFICATES)
    os.environ[_CERTIFICATES] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CERTIFICATES]
        else:
            os.environ[_CERTIFICATES] = before


class _Unfinished(ModuleType):
    """The package before its own code has run: its modules are imported one by one, and the first name of the
    package itself that is asked for has all of it run.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "__version__":
            raise AttributeError(name)
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        assert spec.origin is not None
        if name == "__version__":  # the server's modules ask for it
            found = re.search(r'^__version__ = "(.+)"$', Path(spec.origin).read_text(encoding="utf-8"), re.M)
            if found:
                return found[1]
        elif find_spec(f"{self.__name__}.{name}") is not None:
            return import_module(f"{self.__name__}.{name}")
        self.__class__ = ModuleType  # type: ignore[assignment]  # what is not there now, is not there
        with _certificates_unread():
            spec.loader.exec_module(self)
        return getattr(self, name)


def _import_server() -> None:
    spec = find_spec("aiohttp")
    if "aiohttp" not in sys.modules and spec is not None:
        package = module_from_spec(spec)
        package.__class__ = _Unfinished
        sys.modules["aiohttp"] = package
    import_module("aiohttp.web")


_import_server()
