"""kubeconfig files, and the configuration that a pod finds inside its cluster.

Everything that would change who we are or whom we trust and is not supported is refused by its name; nothing of the
sort is ignored silently.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct, field

from samewire.errors import Invalid
from samewire.kube.access import Access, check_proxy, check_server
from samewire.kube.auth import CredentialSource, FixedCredential, Pem
from samewire.kube.exec_plugin import ExecCredential, ExecSettings, check_exec
from samewire.kube.yamltext import load_yaml, without_nulls

SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_FAULT = re.compile(r"(?P<message>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)

_REFUSED_USER: Final = {
    "username": "basic authentication left Kubernetes with 1.19; use a token, a client certificate or exec",
    "password": "basic authentication left Kubernetes with 1.19; use a token, a client certificate or exec",
    "auth-provider": "left Kubernetes with 1.26; use exec",
}


class _Cluster(Struct, frozen=True, rename="kebab"):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    proxy_url: str = ""


class _Variable(Struct, frozen=True):
    name: str
    value: str = ""


class _Exec(Struct, frozen=True, rename="camel"):
    api_version: str = ""
    command: str = ""
    args: tuple[str, ...] | None = None
    env: tuple[_Variable, ...] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = ""


class _User(Struct, frozen=True, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = field(default="", name="tokenFile")
    exec: _Exec | None = None
    as_user: str = field(default="", name="as")
    as_uid: str = ""
    as_groups: tuple[str, ...] = ()
    as_user_extra: dict[str, tuple[str, ...]] = field(default_factory=dict)


class _Context(Struct, frozen=True):
    cluster: str = ""
    user: str = ""
    namespace: str = ""


def load_kubeconfig(path: Path | str, context: str = "") -> Access:
    """The access that a context of a kubeconfig describes; "" = its current-context.

    ``path``: one file, or several with colons between them, as in ``$KUBECONFIG``: an entry counts where its name
    comes first, and of several files some may be missing. Files that they name are relative to the directory of the
    one that names them. Raises ``Invalid``, naming file and field.
    """
    paths = [Path(part) for part in str(path).split(os.pathsep) if part]
    files = [_File(item, _read(item)) for item in paths if len(paths) == 1 or item.exists()]
    if not files:
        raise Invalid(f"kubeconfig {path}", "cannot be read: there is no such file")
    return _Kubeconfig(files).access(context)


def in_cluster(environment: Mapping[str, str] = os.environ, directory: Path = SERVICE_ACCOUNT_DIR) -> Access:
    """The access of the pod that this process runs in, by its service account. Raises ``Invalid``."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise Invalid(
            "in_cluster", "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod"
        )
    token, ca, namespace = directory / "token", directory / "ca.crt", directory / "namespace"
    for file in (token, ca):
        if not file.is_file():
            raise Invalid(str(file), "is missing: the pod has no service account token mounted")
    address = f"[{host}]" if ":" in host else host
    return Access(
        server=check_server("KUBERNETES_SERVICE_HOST", f"https://{address}:{port}"),
        credentials=FixedCredential(token_file=token, field=str(token)),
        namespace=namespace.read_text().strip() if namespace.is_file() else "default",
        ca=Pem(str(ca), file=ca),
    )


class _File(NamedTuple):
    path: Path
    values: dict[str, Any]


class _Entry(NamedTuple):
    """A named entry: where it is, for messages; its content; the directory that its files are relative to."""

    where: str
    raw: dict[str, Any]
    directory: Path

    def pem(self, key: str) -> Pem | None:
        """Certificates or a key; inline data goes before the file, as everywhere else."""
        where, inline = f"{self.where}.{key}", self.raw.get(f"{key}-data")
        if inline:
            try:
                return Pem(f"{where}-data", data=base64.b64decode(inline, validate=False))
            except (binascii.Error, ValueError) as error:
                raise Invalid(f"{where}-data", f"is not base64: {error}") from error
        return Pem(where, file=self.directory / self.raw[key]) if self.raw.get(key) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            f"kubeconfig {path}", f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        ) from error
    except ValueError as error:
        raise Invalid(str(path), f"is not YAML: {error}") from error
    if values is None:
        return {}  # a file without anything in it is one without entries
    if not isinstance(values, dict):
        raise Invalid(f"{path}: $", "is no kubeconfig: not a mapping")
    return values


class _Kubeconfig:
    """Parsed files; reads the entries that one context names and nothing else."""

    def __init__(self, files: list[_File]) -> None:
        self._files = files

    def access(self, context: str) -> Access:
        current = next((file for file in self._files if file.values.get("current-context")), self._files[0])
        name = context or str(current.values.get("current-context") or "")
        wanted_by = f"{current.path}: current-context"
        if not name:
            raise Invalid(wanted_by, "is missing, and no context was named")
        found = self._entry("contexts", "context", name, wanted_by)
        chosen = _convert(found, _Context)
        at = self._entry("clusters", "cluster", chosen.cluster, f"{found.where}.cluster")
        cluster = _convert(at, _Cluster)
        ca = at.pem("certificate-authority")
        if ca is not None and cluster.insecure_skip_tls_verify:
            raise Invalid(
                f"{at.where}.insecure-skip-tls-verify", "cannot be set beside a certificate authority"
            )
        server = check_server(f"{at.where}.server", cluster.server)
        credentials, impersonation = self._credentials(chosen, found.where, at)
        return Access(
            server=server,
            credentials=credentials,
            namespace=chosen.namespace or "default",
            ca=ca,
            server_name=cluster.tls_server_name,
            insecure=cluster.insecure_skip_tls_verify,
            proxy=check_proxy(f"{at.where}.proxy-url", cluster.proxy_url),
            impersonation=impersonation,
        )

    def _credentials(
        self, context: _Context, where: str, cluster: _Entry
    ) -> tuple[CredentialSource, tuple[tuple[str, str], ...]]:
        """Who we are, and the headers by which we are somebody else."""
        if not context.user:
            return FixedCredential(), ()
        found = self._entry("users", "user", context.user, f"{where}.user")
        _refuse(found, _REFUSED_USER)
        user = _convert(found, _User)
        certificate, key = found.pem("client-certificate"), found.pem("client-key")
        if (certificate is None) != (key is None):
            missing = "client-key" if key is None else "client-certificate"
            raise Invalid(f"{found.where}.{missing}", "is missing")
        impersonation = _impersonation(found.where, user)
        if user.exec is not None:
            if certificate is not None or user.token or user.token_file:
                raise Invalid(f"{found.where}.exec", "cannot be used beside a token or a client certificate")
            return _exec(f"{found.where}.exec", user.exec, found.directory, cluster), impersonation
        token_file = found.directory / user.token_file if user.token_file else None
        fixed = FixedCredential(user.token, token_file, certificate, key, f"{found.where}.tokenFile")
        return fixed, impersonation

    def _entry(self, plural: str, singular: str, name: str, wanted_by: str) -> _Entry:
        """The named entry of the first file that has it."""
        for path, values in self._files:
            entries = values.get(plural) or []
            if not isinstance(entries, list):
                raise Invalid(f"{path}: {plural}", "must be a list")
            for index, entry in enumerate(entries):
                if isinstance(entry, dict) and entry.get("name") == name:
                    where = f"{path}: {plural}[{index}].{singular}"
                    content = entry.get(singular) or {}
                    if not isinstance(content, dict):
                        raise Invalid(where, "must be a mapping")
                    return _Entry(where, content, path.absolute().parent)
        raise Invalid(wanted_by, f"names {name!r}, which is not in {plural}")


def _impersonation(where: str, user: _User) -> tuple[tuple[str, str], ...]:
    """The headers of the API's user impersonation."""
    headers = [("Impersonate-Group", group) for group in user.as_groups]
    if user.as_uid:
        headers.append(("Impersonate-Uid", user.as_uid))
    for key, values in user.as_user_extra.items():
        headers += [(f"Impersonate-Extra-{quote(key.lower(), safe='')}", value) for value in values]
    if headers and not user.as_user:
        raise Invalid(f"{where}.as", "is missing: a group, uid or extra alone is nobody to be")
    return (("Impersonate-User", user.as_user), *headers) if user.as_user else ()


def _exec(where: str, found: _Exec, directory: Path, cluster: _Entry) -> ExecCredential:
    check_exec(where, found.api_version, found.command, found.interactive_mode)
    return ExecCredential(
        ExecSettings(
            where=where,
            api_version=found.api_version,
            command=found.command,
            args=found.args or (),
            env=tuple((item.name, item.value) for item in found.env or ()),
            directory=directory,
            install_hint=found.install_hint,
            cluster=_cluster_info(cluster) if found.provide_cluster_info else None,
        )
    )


def _cluster_info(cluster: _Entry) -> dict[str, Any]:
    """What a plugin is told of the cluster, by the names of its own API."""
    ca = cluster.pem("certificate-authority")
    info: dict[str, Any] = {"server": cluster.raw.get("server", ""), "config": None}
    extensions = cluster.raw.get("extensions") or []
    if not isinstance(extensions, list):
        raise Invalid(f"{cluster.where}.extensions", "must be a list")
    for extension in extensions:
        if isinstance(extension, dict) and extension.get("name") == f"{_EXEC_GROUP}/exec":
            info["config"] = extension.get("extension")
    if ca is not None:
        info["certificate-authority-data"] = base64.b64encode(ca.read()).decode()
    for key in ("tls-server-name", "insecure-skip-tls-verify", "proxy-url"):
        if cluster.raw.get(key):
            info[key] = cluster.raw[key]
    return info


_EXEC_GROUP: Final = "client.authentication.k8s.io"
_T = TypeVar("_T")


def _convert(entry: _Entry, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(without_nulls(entry.raw), kind)
    except msgspec.ValidationError as error:
        found = _FAULT.fullmatch(str(error))
        assert found is not None
        where = f"{entry.where}.{found['path']}" if found["path"] else entry.where
        raise Invalid(where, found["message"]) from None


def _refuse(entry: _Entry, refused: dict[str, str]) -> None:
    for key, reason in refused.items():
        if entry.raw.get(key):
            raise Invalid(f"{entry.where}.{key}", reason)
