"""Print the requirements of the project and all its groups, one shell-quoted word each (for the Makefile)."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
wanted: list[str] = list(project["project"]["dependencies"])
for group in project["dependency-groups"].values():
    wanted += group
print(" ".join(shlex.quote(word) for word in wanted))
