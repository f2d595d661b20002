"""Who we are to the API server: tokens, client certificates, exec plugins.

A credential is asked for with every request (there are few: a watch lasts for minutes), so a rotated token or
certificate file is seen with the next one. `CredentialSource.reject` tells a source that the server said 401.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from msgspec import Struct

from samewire.errors import Invalid


class Credential(Struct, frozen=True):
    """What goes with one request: a bearer token ("" = none), and a client certificate with its key as PEM."""

    token: str = ""
    certificate_pem: bytes = b""
    key_pem: bytes = b""

    def __repr__(self) -> str:
        return f"Credential(token={bool(self.token)}, certificate={bool(self.certificate_pem)})"


class CredentialSource(Protocol):
    """Gives credentials."""

    async def get(self) -> Credential:
        """The credential to use now. Raises ``Invalid`` (settings) or ``Unavailable`` (plugin, files)."""

    def reject(self, credential: Credential) -> bool:
        """The server did not accept this one. Returns whether asking again may give another."""


class Pem(Struct, frozen=True):
    """PEM text that is given inline or by file; the file is read each time. ``field`` is for messages."""

    field: str
    data: bytes = b""
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Pem({self.field}, file={self.file})"

    def read(self) -> bytes:
        """The text; empty if none was given. Raises ``Invalid``."""
        if self.file is None:
            return self.data
        try:
            return self.file.read_bytes()
        except OSError as error:
            raise Invalid(self.field, f"cannot be read: {error}") from error


class FixedCredential:
    """A token and a certificate that are given, inline or by file."""

    def __init__(
        self,
        token: str = "",
        token_file: Path | None = None,
        certificate: Pem | None = None,
        key: Pem | None = None,
        field: str = "tokenFile",
    ) -> None:
        self._token = token
        self._token_file = token_file
        self._certificate = certificate
        self._key = key
        self._field = field

    async def get(self) -> Credential:
        """The credential, as its files are now."""
        return Credential(
            token=self._read_token(),
            certificate_pem=self._certificate.read() if self._certificate else b"",
            key_pem=self._key.read() if self._key else b"",
        )

    def reject(self, credential: Credential) -> bool:
        """A file may have been replaced between the reading and the answer."""
        return self._token_file is not None

    def _read_token(self) -> str:
        """The token file's content; while it cannot be read (it is being replaced), the last one."""
        if self._token_file is None:
            return self._token
        try:
            found = self._token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            if self._token:
                return self._token
            raise Invalid(self._field, f"cannot be read: {error}") from error
        if found:
            self._token = found
        elif not self._token:
            raise Invalid(self._field, f"{self._token_file} is empty")
        return self._token
