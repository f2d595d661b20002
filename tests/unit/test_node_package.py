"""A package that has been replaced under the daemon: nothing of the new one is loaded into the old."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from samewire.errors import Unavailable
from samewire.node.package import Package


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "package"
    (made / "part").mkdir(parents=True)
    (made / "__init__.py").write_text("one")
    (made / "part" / "late.py").write_text("two")
    return made


def _written_anew(directory: Path) -> None:
    """The same text in another file, as by an installer that keeps times."""
    late = directory / "part" / "late.py"
    new = directory / "part" / "new"
    shutil.copy2(late, new)
    new.rename(late)


def _grown(directory: Path) -> None:
    (directory / "part" / "late.py").write_text("two and more")


def _more(directory: Path) -> None:
    (directory / "part" / "more.py").touch()


def _gone(directory: Path) -> None:
    shutil.rmtree(directory)


@pytest.mark.parametrize("change", [_written_anew, _grown, _more, _gone])
def test_a_replaced_package_is_told(directory: Path, change: Callable[[Path], None]) -> None:
    package = Package(directory)
    package.check("nothing")
    change(directory)
    with pytest.raises(Unavailable, match=r"the trace is unavailable: .* restart the daemon"):
        package.check("the trace")


@pytest.mark.parametrize("name", ["__pycache__", "windows"])
def test_what_the_daemon_does_not_load_may_come_and_go(directory: Path, name: str) -> None:
    package = Package(directory)
    (directory / "part" / name).mkdir()
    (directory / "part" / name / "late").touch()
    package.check("nothing")
