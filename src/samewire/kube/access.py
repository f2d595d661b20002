"""How to reach an API server: its address, its certificate, who we are."""

from __future__ import annotations

import os
import re
import ssl
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from samewire.errors import Invalid
from samewire.kube.auth import Credential, CredentialSource, Pem

_USER: Final = re.compile("//.*@")


class Access(Struct, frozen=True):
    """One API server and our credentials for it.

    ``server``: URL, without a slash at its end. ``namespace``: the context's, for those who need one.
    ``ca``: whom to trust; None = the system's authorities. ``server_name``: the name expected in the server's
    certificate, "" = the URL's host. ``insecure``: do not look at the server's certificate at all. ``proxy``: URL of
    the HTTP proxy on the way, "" = none. ``impersonation``: headers that say who we want to be taken for.
    """

    server: str
    credentials: CredentialSource
    namespace: str = "default"
    ca: Pem | None = None
    server_name: str = ""
    insecure: bool = False
    proxy: str = ""
    impersonation: tuple[tuple[str, str], ...] = ()


def check_proxy(field: str, proxy: str) -> str:
    """The proxy's URL, "" if there is none. Raises ``Invalid``."""
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if proxy and not usable:
        raise Invalid(
            field, f"{_shown(proxy)} is no URL of an HTTP proxy (http:// or https://; SOCKS is not supported)"
        )
    return proxy


def check_server(field: str, server: str) -> str:
    """The server's URL in the form that `TlsContexts` and aiohttp read alike (its scheme in lower case, say), without
    the slash at its end. Raises ``Invalid``.
    """
    if "://" not in server:
        server = f"https://{server}" if server else ""
    try:
        parts = urlsplit(server)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Invalid(field, f"{_shown(server)} is no URL of an API server (https://host:port)")
    if "@" in parts.netloc:
        raise Invalid(field, "names a user; basic authentication left Kubernetes with 1.19")
    return parts.geturl().rstrip("/")


def _shown(url: str) -> str:
    """A URL as an error may have it: without a password."""
    return repr(_USER.sub("//*@", url))


class TlsContexts:
    """TLS settings for connections, made anew when a certificate has changed (rotation of files, exec plugins)."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._made_of: tuple[bytes, bytes, bytes] | None = None
        self._context: ssl.SSLContext | None = None

    def get(self, credential: Credential) -> ssl.SSLContext | None:
        """The context to use with a credential; None for plain HTTP. Raises ``Invalid``."""
        if not self._access.server.startswith("https://"):
            return None
        ca = self._access.ca
        made_of = (ca.read() if ca else b"", credential.certificate_pem, credential.key_pem)
        if self._context is None or made_of != self._made_of:
            self._context = self._make(*made_of)
            self._made_of = made_of
        return self._context

    def _make(self, ca_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
        access = self._access
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if access.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif access.ca is None:
            context.load_default_certs()
        else:
            _load_ca(context, access.ca, ca_pem)
            # What the kubeconfig trusts need not be a root: Go, and so kubectl, takes an intermediate as it is.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if certificate_pem:
            _load_client(context, certificate_pem, key_pem)
        return context


def _load_ca(context: ssl.SSLContext, ca: Pem, text: bytes) -> None:
    """What is not ASCII is in no certificate: it is in comments between them."""
    try:
        context.load_verify_locations(cadata=text.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise Invalid(ca.field, f"holds no PEM certificates: {error}") from error


_CLIENT_FIELD: Final = "client certificate"


def _load_client(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    """OpenSSL reads these from files only: an anonymous one keeps the key off the disk."""
    descriptor = os.memfd_create("samewire-client")
    try:
        os.write(descriptor, certificate_pem + b"\n" + key_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise Invalid(_CLIENT_FIELD, f"certificate and key do not fit or are no PEM: {error}") from error
    finally:
        os.close(descriptor)


def _no_password() -> str:
    raise ValueError("the key is encrypted, and a daemon has nobody to ask for its password")
