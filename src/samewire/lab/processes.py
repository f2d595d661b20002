"""Starting a process that outlives the command, in its cgroup before its first instruction.

The chain is plain shell and util-linux (``setsid``, ``nsenter``, ``unshare``): 5 ms a process, nothing of the
lab stays behind as a parent, and a ``kill -9`` of ``lab up`` at any moment leaves only processes that are in
a cgroup of the journal.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec import Struct

from samewire.errors import NotFound, Unavailable
from samewire.lab.commands import clean_environment, netns_path, run
from samewire.lab.pids import is_running

READY_TIMEOUT_S = 30.0
# What the machine unmounts goes here, too; else a disk stayed in use as long as the lab is up.
_PRIVATE_MOUNTS = ("--mount", "--propagation", "slave")
_POLL_S = 0.01

# $1 cgroups, $2 oom_score_adj, $3 the files of pids.py without their endings, then the command. A refused
# oom_score_adj is no failure: lowering it needs CAP_SYS_RESOURCE, which containers and some virtual machines withhold.
_OUTER = """
for group in $1; do echo $$ > "$group/cgroup.procs"; done
{ echo "$2" > /proc/self/oom_score_adj; } 2>/dev/null || :
IFS= read -r stat < /proc/$$/stat
files=$3
shift 3
(set -- ${stat##*') '}; shift 19; echo "$1") > "$files.started"
echo $$ > "$files.pid"
exec "$@"
"""

# $1 host name, $2 file to touch or empty, $3 number of bind mounts, then pairs, then the command.
_INNER = """
echo "$1" > /proc/sys/kernel/hostname
ready=$2; binds=$3; shift 3
while [ "$binds" -gt 0 ]; do mount --bind "$1" "$2"; shift 2; binds=$((binds - 1)); done
if [ -n "$ready" ]; then : > "$ready"; fi
exec "$@"
"""


class Launch(Struct, frozen=True):
    """A process to start.

    ``name`` names its pid, log and ready files in ``directory``. ``own_ready``: the command itself creates
    the ready file once it serves; otherwise the file appears just before the command is executed. ``binds``
    are (source, target) mounts private to the process; with ``private_mounts`` false what it mounts is seen
    by all.
    """

    name: str
    directory: Path
    netns: str
    hostname: str
    cgroups: tuple[Path, ...]
    command: tuple[str, ...]
    own_ready: bool = False
    private_mounts: bool = True
    oom_score_adj: int = 0
    binds: tuple[tuple[Path, str], ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    @property
    def ready_file(self) -> Path:
        """The file whose presence means that the process serves."""
        return self.directory / f"{self.name}.ready"

    @property
    def log_file(self) -> Path:
        """Where its output goes."""
        return self.directory / f"{self.name}.log"


async def start(launch: Launch) -> None:
    """Start a process and wait until it is ready.

    Raises Unavailable with the end of its log when it ends early or is not ready within 30 s.
    """
    launch.directory.mkdir(parents=True, exist_ok=True)
    (launch.directory / f"{launch.name}.pid").unlink(missing_ok=True)
    launch.ready_file.unlink(missing_ok=True)
    binds = [str(word) for pair in launch.binds for word in pair]
    inner = (
        "nsenter",
        f"--net={netns_path(launch.netns)}",
        "unshare",
        *(_PRIVATE_MOUNTS if launch.private_mounts else ()),
        "--uts",
        *("sh", "-eu", "-c", _INNER, launch.name, launch.hostname),
        "" if launch.own_ready else str(launch.ready_file),
        str(len(launch.binds)),
        *binds,
        *launch.command,
    )
    outer = (
        *("sh", "-eu", "-c", _OUTER, launch.name),
        " ".join(str(path) for path in launch.cgroups),
        str(launch.oom_score_adj),
        str(launch.directory / launch.name),
    )
    redirect = 'log=$1; shift; exec setsid --fork "$@" < /dev/null >> "$log" 2>&1'
    env = clean_environment(**dict(launch.env))
    await run("sh", "-c", redirect, "start", str(launch.log_file), *outer, *inner, env=env)
    await _until_ready(launch)


def python_script(module_file: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs one self-contained script with as few imports as an interpreter can start with."""
    script = Path(__file__).parent / module_file
    return (_interpreter(), "-I", "-S", str(script), *arguments)


def log_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


async def poll(condition: str, ready: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    """Wait until ``ready()`` is true; raises TimeoutError naming the condition when it is not in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not await ready():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{condition} is not ready within {timeout_s:g} s")
        await asyncio.sleep(_POLL_S)


async def _until_ready(launch: Launch) -> None:
    async def ready() -> bool:
        if launch.ready_file.exists():
            return True
        try:
            running = is_running(launch.directory, launch.name)
        except NotFound:
            return False
        if not running:
            raise Unavailable(launch.name, f"ended at once: {log_tail(launch.log_file) or '(no output)'}")
        return False

    try:
        await poll(launch.name, ready, READY_TIMEOUT_S)
    except TimeoutError as error:
        raise Unavailable(launch.name, f"{error}: {log_tail(launch.log_file)}") from error


def _interpreter() -> str:
    """Debian's interpreter where there is one: no shim, no virtual environment to look up, half the start
    time.
    """
    return "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
