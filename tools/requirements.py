"""Print the requirements of the named groups, else of the package itself, as shell-quoted words (for the Makefile)."""

from __future__ import annotations

import shlex
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
groups = [project["dependency-groups"][name] for name in sys.argv[1:]] or [project["project"]["dependencies"]]
wanted: list[str] = [word for group in groups for word in group]
print(" ".join(shlex.quote(word) for word in wanted))
