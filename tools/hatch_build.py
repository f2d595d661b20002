"""Hatchling build hook: compile the switch (clang) and the CNI client (cc) into the wheel.

No binary lives in git; the objects are built into ``src/samewire/_build`` and force-included.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs ``make native`` and ships its products as package data."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, then name the files that the wheel must carry."""
        root = Path(self.root)
        subprocess.run(["make", "--no-print-directory", "-C", str(root), "native"], check=True)
        build_data["pure_python"] = False
        build_data["infer_tag"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"
        built = root / "src" / "samewire" / "_build"
        for path in sorted(built.iterdir()):
            build_data["force_include"][str(path)] = f"samewire/_build/{path.name}"
