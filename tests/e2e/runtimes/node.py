"""A node for real runtimes: own network, mount and PID namespaces, own directories, an outside host behind its NIC.

::

    outside 192.0.2.1 ---- 192.0.2.10 eth0 | node: runtime, plugin, daemon | pods

Nothing of it can stay behind: everything dies with the node's first process (holder.py), which ends when the test does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e.runtimes import cgroups, holder

ADDRESS = "192.0.2.10"
OUTSIDE = "192.0.2.1"
OUTSIDE_NETNS = "outside"
COMMAND_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LOG_TAIL_BYTES = 4000

# What asks an HTTP server for its name from the node.
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=20).read().decode())"

# A runtime of the test needs nothing of what pytest's caller has in its environment.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/run"}


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    """Poll ``condition``; TimeoutError when the time is over."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit_s} s")
        time.sleep(0.02)


class Background:
    """A process of the node that runs on."""

    def __init__(self, name: str, child: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.child = child
        self._log = log

    def wait_for(self, condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
        """Poll ``condition``; AssertionError with the log's end when the process dies or the time is over."""

        def settled() -> bool:
            assert self.child.poll() is None, f"{self.name} ended ({self.child.returncode}):\n{self.tail()}"
            return condition()

        try:
            wait_for(settled, what, limit_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def tail(self) -> str:
        """The end of its output."""
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


class Node:
    """A running node. ``directory`` is the same path inside and outside of it.

    ``cgroup`` is the name of the control group that holds those of its containers, in every hierarchy;
    ``host_cgroup`` the version 2 group of the node's own client processes.
    """

    def __init__(self, directory: Path, host_cgroup: Path, first: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.cgroup = directory.name
        self.host_cgroup = host_cgroup
        self.backgrounds: list[Background] = []
        self._first = first

    def command(self, *command: str, outside: bool = False) -> list[str]:
        """The command line that runs ``command`` on the node, or (``outside``) on the host behind its NIC."""
        namespaces = f"/proc/{self._first.pid}/ns"
        enter = ["nsenter", f"--mount={namespaces}/mnt", f"--net={namespaces}/net"]
        enter.append(f"--pid={namespaces}/pid_for_children")
        if outside:  # a second nsenter: that path is in the node's mount namespace
            enter += ["nsenter", f"--net=/run/netns/{OUTSIDE_NETNS}"]
        return [*enter, *command]

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, outside: bool = False, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` to its end; AssertionError with its output if it fails."""
        done = subprocess.run(
            self.command(*command, outside=outside),
            env={**ENVIRONMENT, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def start(
        self, name: str, *command: str, env: Mapping[str, str] | None = None, outside: bool = False
    ) -> Background:
        """Start a process that ends with the node; its output goes to ``<directory>/<name>.log``."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                self.command(*command, outside=outside),
                env={**ENVIRONMENT, **(env or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.backgrounds.append(Background(name, child, log))
        return self.backgrounds[-1]

    def serve(self, name: str, port: int, outside: bool = False) -> None:
        """An HTTP server on the node (or outside) whose ``/name`` says ``name``."""
        root = self.directory / f"www-{name}"
        root.mkdir()
        (root / "name").write_text(name)
        server = self.start(
            f"http-{name}", "busybox", "httpd", "-f", "-p", str(port), "-h", str(root), outside=outside
        )
        server.wait_for(
            lambda: self.fetch("127.0.0.1", port, outside=outside) == name, "the HTTP server answers"
        )

    def fetch(self, host: str, port: int, outside: bool = False) -> str:
        """What the HTTP server at ``host`` says its name is, asked from the node or from outside; "" = no answer."""
        ask = [sys.executable, "-I", "-S", "-c", FETCH, f"http://{host}:{port}/name"]
        if not outside:
            join = f"echo 0 >{self.host_cgroup}/cgroup.procs"
            ask = ["sh", "-c", f'{join} && exec "$@"', "sh", *ask]
        return self.run(*ask, outside=outside, check=False).stdout.strip()


@contextmanager
def running_node() -> Iterator[Node]:
    """Make a node, and remove all of it again. Its directory's name is unique and short (unix sockets)."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=f"swrt-{os.getpid()}-", dir="/tmp"))
        stack.callback(shutil.rmtree, directory)
        stack.callback(cgroups.remove, directory.name)
        host_cgroup = cgroups.create(f"{directory.name}/host")
        first = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             "--propagation", "private", sys.executable, holder.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        node = Node(directory, host_cgroup, first)
        stack.callback(_stop, node, first)
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n", "the node's first process failed"
        _connect(node)
        yield node


def _connect(node: Node) -> None:
    """The node's NIC and the host behind it."""
    node.run("ip", "link", "set", "lo", "up")
    node.run("ip", "netns", "add", OUTSIDE_NETNS)
    node.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", OUTSIDE_NETNS)
    for outside, address in ((False, ADDRESS), (True, OUTSIDE)):
        node.run("ip", "address", "add", f"{address}/24", "dev", "eth0", outside=outside)
        node.run("ip", "link", "set", "eth0", "up", outside=outside)
    node.run("ip", "link", "set", "lo", "up", outside=True)
    node.run("ip", "route", "add", "default", "via", OUTSIDE)


def _stop(node: Node, first: subprocess.Popen[bytes]) -> None:
    """End the first process, which is the end of every other one, and collect what ran here on their behalf."""
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.close()
    try:
        first.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        first.kill()  # --kill-child: the first process goes with its parent
        first.wait()
    first.stdout.close()
    for background in node.backgrounds:
        background.child.wait(STOP_TIMEOUT_S)
