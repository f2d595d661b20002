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
from importlib.machinery import ModuleSpec, PathFinder
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


class _Late(ModuleType):
    """A module before its code has run: the first name that is asked for has it run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "__all__":
            raise AttributeError(name)
        self._run()
        return getattr(self, name)

    def _run(self) -> None:
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]  # what is not there now, is not there
        spec.loader.exec_module(self)


class _LatePackage(_Late):
    """A package before its own code has run: its modules are imported one by one, and the first name of the
    package itself that is asked for has all of it run.
    """

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        assert spec is not None
        assert spec.origin is not None
        if name == "__version__":  # the server's modules ask for it
            found = re.search(r'^__version__ = "(.+)"$', Path(spec.origin).read_text(encoding="utf-8"), re.M)
            if found:
                return found[1]
        elif not name.startswith("_") and find_spec(f"{self.__name__}.{name}") is not None:
            return import_module(f"{self.__name__}.{name}")
        with _certificates_unread():
            return super().__getattr__(name)


def _put_off(spec: ModuleSpec | None, kind: type[_Late]) -> None:
    if spec is not None and spec.name not in sys.modules:
        module = module_from_spec(spec)
        module.__class__ = kind
        sys.modules[spec.name] = module


def _import_server() -> None:
    attrs = find_spec("attr")
    if attrs is not None and "attr" not in sys.modules:  # a third of it is validators, which nobody here uses
        _put_off(PathFinder.find_spec("attr.validators", attrs.submodule_search_locations), _Late)
    _put_off(find_spec("idna"), _Late)  # of hosts' names that are not ASCII
    _put_off(find_spec("aiohttp"), _LatePackage)
    import_module("aiohttp.web")


_import_server()
