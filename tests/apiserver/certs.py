"""A certificate authority, a server's and a client's certificate, made with the openssl command."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

SERVER_NAME = "kubernetes.test"


@dataclass(frozen=True)
class Certificates:
    """PEM files."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    def server_context(self, *, client_required: bool = False) -> ssl.SSLContext:
        """For the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server, self.server_key)
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_NONE
        return context


def make_certificates(directory: Path, names: str = f"DNS:{SERVER_NAME},IP:127.0.0.1") -> Certificates:
    """A new authority and what it signed; the server's certificate is valid for ``names``."""
    made = Certificates(
        *(directory / name for name in ("ca.crt", "server.crt", "server.key", "client.crt", "client.key"))
    )
    ca_key = directory / "ca.key"
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-keyout", ca_key, "-out", made.ca, "-subj", "/CN=test authority")  # fmt: skip
    _sign(directory, made.ca, ca_key, made.server, made.server_key, "/CN=server", f"subjectAltName={names}")
    _sign(
        directory,
        made.ca,
        ca_key,
        made.client,
        made.client_key,
        "/O=system:nodes/CN=node1",
        "keyUsage=digitalSignature",
    )
    return made


def _sign(
    directory: Path, ca: Path, ca_key: Path, out: Path, key: Path, subject: str, extension: str
) -> None:
    request, extensions = directory / "request.csr", directory / "extensions"
    extensions.write_text(extension)
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", key, "-out", request, "-subj", subject)  # fmt: skip
    _openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-days", "2", "-out", out,
             "-extfile", extensions)  # fmt: skip


def _openssl(*args: object) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)
