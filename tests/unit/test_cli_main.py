"""The executable: help, exit statuses, one line an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import samewire
from samewire.cli.errors import exit_status
from samewire.cli.main import _COMMANDS, cli
from samewire.errors import Conflict, KernelError, NotFound, SamewireError, Unavailable
from samewire.hcn.errors import HcnCode, HcnError
from tests.support.tools import StubDaemon


def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command line; returns status, stdout and stderr."""
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_command() -> None:
    status, out, _ = run("--help")
    assert status == 0
    for name, command in _COMMANDS.items():
        assert f"  {name} " in out
        assert command.help in " ".join(out.split())


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_is_there_and_has_help(name: str) -> None:
    status, out, _ = run(name, "--help")
    assert status == 0
    assert out.startswith(f"Usage: cli {name}")
    assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["hns", "lab", "vfp"])
def test_a_group_says_in_one_line_what_each_of_its_commands_does(name: str) -> None:
    out = run(name, "--help")[1]
    assert [line for line in out.splitlines()[1:] if len(line) > 80 or line.endswith("...")] == []


def test_help_imports_nothing_slow() -> None:
    script = (
        "import sys\n"
        "from samewire.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "slow = {'aiohttp', 'asyncio', 'msgspec', 'rich', 'structlog', 'ctypes', 'sqlite3'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(slow)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert run("--version") == (0, f"{samewire.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["nothing"], ["--nothing"], ["get"], ["get", "pods"], ["trace"]])
def test_wrong_usage(arguments: list[str]) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert "Error: " in err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("endpoint", "x"), 3),
        (HcnError(HcnCode.ENDPOINT_NOT_FOUND, "x"), 3),
        (HcnError(HcnCode.ERROR_NOT_FOUND, "x"), 3),
        (HcnError(HcnCode.INVALID_JSON, "x"), 1),
        (Unavailable("samewire", "x"), 4),
        (Conflict("x"), 1),
        (KernelError("create veth", 12), 1),
    ],
)
def test_exit_statuses(error: SamewireError, status: int) -> None:
    assert exit_status(error) == status


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    socket = str(tmp_path / "none.sock")
    for arguments in (
        ["get", "networks"],
        ["get", "drops", "--watch"],
        ["diff"],
        ["doctor"],
        ["trace", "--from", "a", "--to", "10.0.0.1"],
        ["capture", "a"],
    ):
        status, out, err = run("--socket", socket, *arguments)
        assert (status, out) == (4, ""), arguments
        assert err.startswith(f"Error: samewire at {socket} is unavailable")
        assert "no daemon listens there" in err
        assert len(err.splitlines()) == 1


def test_the_socket_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StubDaemon(tmp_path) as daemon:
        daemon.answers["GET /v2/networks"] = (200, [])
        monkeypatch.setenv("SAMEWIRE_SOCKET", daemon.socket)
        assert run("get", "networks") == (0, "", "none\n")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("latin-1", b"Gr\xfc\xdfe \\u2192 \\ud800"), ("utf-8", "Grüße →".encode() + rb" \ud800")],
)
def test_what_the_terminals_encoding_lacks_is_shown_by_its_number(
    tmp_path: Path, encoding: str, shown: bytes
) -> None:
    with StubDaemon(tmp_path) as daemon:
        daemon.answers["GET /v2/networks"] = (200, [{"ID": "1", "Name": "Grüße → \ud800", "Type": "Overlay"}])
        done = subprocess.run(
            [sys.executable, "-m", "samewire.cli.main", "--socket", daemon.socket, "get", "networks"],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[1].startswith(shown)


def test_errors_of_many_lines_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fail() -> None:
        raise KernelError("load switch.o", 22, "verifier:\n  line 1\n  line 2")

    monkeypatch.setitem(cli.commands, "fail", fail)
    monkeypatch.setattr(type(cli), "get_command", lambda self, ctx, name: fail)
    status, _, err = run("fail")
    assert status == 1
    assert err == "Error: load switch.o: EINVAL (Invalid argument): verifier: line 1 line 2\n"


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(cli), "get_command", lambda self, ctx, name: fail)
    result = CliRunner().invoke(cli, ["fail"])
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize("arguments", [["--help"], ["lab", "schema"]])
def test_a_disk_that_is_full_is_said(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "samewire.cli.main", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "Error: cannot be written: No space left on device\n")
