"""Exec credential plugins: client.authentication.k8s.io v1 and v1beta1.

The plugin is run without a terminal; its answer is kept until shortly before it expires, or until the server
refuses it. Its standard error becomes part of our error; its standard output never does.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from samewire.children import begin, kill_group, release
from samewire.errors import Invalid, Unavailable
from samewire.kube.auth import Credential
from samewire.kube.yamltext import load_yaml, without_nulls

GROUP: Final = "client.authentication.k8s.io"
VERSIONS: Final = (f"{GROUP}/v1", f"{GROUP}/v1beta1")

_RUN_TIMEOUT_S: Final = 60.0
_EXPIRY_MARGIN_S: Final = 10.0
_STDERR_BYTES: Final = 500
_OUTPUT_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 16


class _Status(Struct, frozen=True, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _Answer(Struct, frozen=True):
    api_version: str = field(name="apiVersion")
    kind: str
    status: _Status | None = None


class ExecSettings(Struct, frozen=True):
    """How to run a plugin. ``where`` names the kubeconfig field; ``cluster`` is told to it if not None."""

    where: str
    api_version: str
    command: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    directory: Path | None = None
    install_hint: str = ""
    cluster: Mapping[str, Any] | None = None


class ExecCredential:
    """Credentials from a plugin."""

    def __init__(self, settings: ExecSettings, wall_clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._wall_clock = wall_clock
        self._kept: Credential | None = None
        self._expires_s: float | None = None
        self._running = asyncio.Lock()

    async def get(self) -> Credential:
        """The kept credential, or a new one. Raises ``Unavailable`` when the plugin fails."""
        async with self._running:
            if self._kept is None or self._is_expired():
                answer = self._parse(await self._run())
                self._kept = self._credential(answer)
                expires = answer.expiration_timestamp
                self._expires_s = None if expires is None else expires.timestamp()
            return self._kept

    def reject(self, credential: Credential) -> bool:
        """Forget the credential, unless somebody has already got a newer one; the plugin may give a better one."""
        if self._kept is credential:
            self._kept = None
        return True

    def _is_expired(self) -> bool:
        return self._expires_s is not None and self._wall_clock() >= self._expires_s - _EXPIRY_MARGIN_S

    async def _run(self) -> bytes:
        settings = self._settings
        try:
            process = await begin(
                self._command(),
                *settings.args,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **dict(settings.env), "KUBERNETES_EXEC_INFO": self._info()},
            )
        except OSError as error:
            hint = f" ({settings.install_hint})" if settings.install_hint else ""
            raise self._failure(f"cannot run {settings.command}: {error}{hint}") from error
        try:
            async with asyncio.timeout(_RUN_TIMEOUT_S):
                output, errors = await asyncio.gather(self._read(process.stdout), self._read(process.stderr))
                await process.wait()
        except BaseException as error:
            kill_group(process)
            await release(process)
            if isinstance(error, TimeoutError):
                raise self._failure(f"{settings.command} did not end in {_RUN_TIMEOUT_S:g} s") from None
            raise
        if process.returncode != 0:
            text = errors[-_STDERR_BYTES:].decode(errors="replace").strip()
            raise self._failure(f"{settings.command} failed with status {process.returncode}: {text}")
        return output

    async def _read(self, stream: asyncio.StreamReader | None) -> bytes:
        """What the plugin prints there, to the end. Raises ``Unavailable`` for one that does not stop."""
        assert stream is not None
        found = bytearray()
        while piece := await stream.read(_PIECE_BYTES):
            found += piece
            if len(found) > _OUTPUT_BYTES:
                raise self._failure(f"{self._settings.command} printed more than {_OUTPUT_BYTES >> 20} MiB")
        return bytes(found)

    def _command(self) -> str:
        command, directory = self._settings.command, self._settings.directory
        is_relative = "/" in command and not command.startswith("/")
        return str(directory / command) if is_relative and directory else command

    def _info(self) -> str:
        spec: dict[str, Any] = {"interactive": False}
        if self._settings.cluster is not None:
            spec["cluster"] = self._settings.cluster
        info = {"apiVersion": self._settings.api_version, "kind": "ExecCredential", "spec": spec}
        return msgspec.json.encode(info).decode()

    def _parse(self, output: bytes) -> _Status:
        """JSON or YAML, as kubectl takes it. No error has what was printed: it may be a secret."""
        command = self._settings.command
        try:
            values = load_yaml(output.decode())
        except ValueError:
            raise self._failure(f"{command} printed no ExecCredential: neither JSON nor YAML") from None
        try:
            answer = msgspec.convert(without_nulls(values), _Answer)
        except msgspec.ValidationError as error:
            raise self._failure(f"{command} printed no ExecCredential: {error}") from None
        wanted = self._settings.api_version
        if answer.kind != "ExecCredential" or answer.api_version != wanted:
            found = f"{answer.api_version} {answer.kind}"
            raise self._failure(f"{command} answered {found}, not {wanted} ExecCredential")
        if answer.status is None:
            raise self._failure(f"{command} answered without a status")
        return answer.status

    def _credential(self, status: _Status) -> Credential:
        certificate, key = status.client_certificate_data, status.client_key_data
        if bool(certificate) != bool(key):
            raise self._failure("gave a client certificate without its key, or a key without its certificate")
        if not certificate and not status.token:
            raise self._failure(f"{self._settings.command} gave neither a token nor a client certificate")
        return Credential(status.token, certificate.encode(), key.encode())

    def _failure(self, message: str) -> Unavailable:
        return Unavailable(f"exec plugin of {self._settings.where}", message)


def check_exec(where: str, api_version: str, command: str, interactive_mode: str) -> None:
    """Refuse settings that cannot work in a daemon. Raises ``Invalid``, naming the field."""
    if api_version not in VERSIONS:
        raise Invalid(f"{where}.apiVersion", f"is {api_version!r}; known are {' and '.join(VERSIONS)}")
    if not command:
        raise Invalid(f"{where}.command", "is missing")
    if interactive_mode == "Always":
        raise Invalid(f"{where}.interactiveMode", "is Always, and a daemon has no terminal")
    if interactive_mode not in ("", "Never", "IfAvailable"):
        raise Invalid(
            f"{where}.interactiveMode", f"is {interactive_mode!r}; known: Never, IfAvailable, Always"
        )
    if not interactive_mode and api_version == VERSIONS[0]:
        raise Invalid(f"{where}.interactiveMode", f"must be given with {api_version}")
