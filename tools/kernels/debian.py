"""Debian's kernel packages: find the newest of a series, fetch it, make its modules loadable."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path


class NoKernel(Exception):
    """apt offers no kernel of that series, or could not fetch it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package: its image, and ``modules`` laid out as ``/lib/modules``."""

    release: str
    image: Path
    modules: Path


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _older(one: tuple[str, str], two: tuple[str, str]) -> int:
    """Order (version, package) by Debian's rules, which are neither text nor numbers."""
    if one[0] == two[0]:
        return 0
    compare = ["dpkg", "--compare-versions", one[0], "lt", two[0]]
    return -1 if subprocess.run(compare, check=False).returncode == 0 else 1


def newest(series: str) -> tuple[str, str]:
    """The newest signed cloud kernel of ``series`` ("6.1") that apt knows, as (package, version)."""
    pattern = rf"^linux-image-{re.escape(series)}[.][0-9.+a-z-]*-cloud-amd64$"
    found = [
        line.split(" ")[0] for line in _output("apt-cache", "search", "--names-only", pattern).splitlines()
    ]
    offered: list[tuple[str, str]] = []
    for line in _output("apt-cache", "madison", *found).splitlines() if found else ():
        package, version, _ = (field.strip() for field in line.split("|"))
        offered.append((version, package))
    if not offered:
        raise NoKernel(
            f"apt offers no linux-image-{series}.*-cloud-amd64 (6.12 is in bookworm-security or bookworm-backports)"
        )
    version, package = max(offered, key=cmp_to_key(_older))
    return package, version


def _decompress_modules(tree: Path) -> None:
    """Unpack ``.ko.xz`` in place: busybox's modprobe reads plain modules only."""
    for packed in tree.rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()


def _unpack(package: str, version: str, target: Path) -> None:
    work = target.with_name(target.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    fetched = subprocess.run(
        ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", f"{package}={version}"],
        check=False, cwd=work, capture_output=True, text=True,
    )  # fmt: skip
    if fetched.returncode != 0:
        raise NoKernel(f"apt-get download {package}={version}: {fetched.stderr.strip()}")
    (package_file,) = work.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package_file), str(work)], check=True)
    package_file.unlink()
    (modules,) = (work / "lib" / "modules").iterdir()
    _decompress_modules(modules)
    subprocess.run(["busybox", "depmod", "-b", str(work), modules.name], check=True)
    os.rename(work, target)


def kernel(series: str, cache: Path) -> Kernel:
    """The newest kernel of ``series``, unpacked below ``cache``; downloaded only when it is not there yet.

    Raises NoKernel. Old kernels of the same series are removed from the cache.
    """
    try:
        package, version = newest(series)
        target = cache / series / f"{package}_{version}"
        if not target.is_dir():
            _unpack(package, version, target)
    except NoKernel:
        # Package lists that are missing or out of date look the same; fetch them once.
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        package, version = newest(series)
        target = cache / series / f"{package}_{version}"
        if not target.is_dir():
            _unpack(package, version, target)
    for old in target.parent.iterdir():
        if old != target:
            shutil.rmtree(old)
    (modules,) = (target / "lib" / "modules").iterdir()
    return Kernel(modules.name, target / "boot" / f"vmlinuz-{modules.name}", modules.parent)
