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
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from samewire.errors import Invalid
from samewire.kube.access import Access, check_server
from samewire.kube.auth import CredentialSource, FixedCredential, Pem
from samewire.kube.exec_plugin import ExecCredential, ExecSettings, check_exec
from samewire.kube.yamltext import load_yaml

SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_FAULT = re.compile(r"(?P<message>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)

_REFUSED_USER: Final = {
    "username": "basic authentication left Kubernetes with 1.19; use a token, a client certificate or exec",
    "password": "basic authentication left Kubernetes with 1.19; use a token, a client certificate or exec",
    "auth-provider": "left Kubernetes with 1.26; use exec",
    "as": "impersonation is not supported; give the node an identity of its own",
    "as-uid": "impersonation is not supported; give the node an identity of its own",
    "as-groups": "impersonation is not supported; give the node an identity of its own",
    "as-user-extra": "impersonation is not supported; give the node an identity of its own",
}
_REFUSED_CLUSTER: Final = {
    "proxy-url": "proxies are not supported; the node must reach the API server itself",
}


class _Cluster(Struct, frozen=True, rename="kebab"):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False


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


class _Context(Struct, frozen=True):
    cluster: str = ""
    user: str = ""
    namespace: str = ""


def load_kubeconfig(path: Path, context: str = "") -> Access:
    """The access that a context of a kubeconfig file describes; "" = its current-context.

    Files that it names are relative to its directory. Raises ``Invalid``, naming file and field.
    """
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(str(path), f"cannot be read: {error}") from error
    except ValueError as error:
        raise Invalid(str(path), f"is not YAML: {error}") from error
    try:
        return _Kubeconfig(values, path.parent).access(context)
    except Invalid as error:
        raise Invalid(f"{path}: {error.path}", error.message) from error


def in_cluster(environment: Mapping[str, str] = os.environ, directory: Path = SERVICE_ACCOUNT_DIR) -> Access:
    """The access of the pod that this process runs in, by its service account. Raises ``Invalid``."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise Invalid("KUBERNETES_SERVICE_HOST", "and KUBERNETES_SERVICE_PORT are not set: this is no pod")
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


class _Kubeconfig:
    """A parsed file; reads the entries that one context names and nothing else."""

    def __init__(self, values: Any, directory: Path) -> None:
        if not isinstance(values, dict):
            raise Invalid("$", "is no kubeconfig: not a mapping")
        self._values = values
        self._directory = directory

    def access(self, context: str) -> Access:
        name = context or str(self._values.get("current-context") or "")
        if not name:
            raise Invalid("current-context", "is missing, and no context was named")
        where, raw = self._entry("contexts", "context", name, "current-context")
        chosen = _convert(where, raw, _Context)
        cluster_where, cluster_raw = self._entry("clusters", "cluster", chosen.cluster, f"{where}.cluster")
        _refuse(cluster_where, cluster_raw, _REFUSED_CLUSTER)
        cluster = _convert(cluster_where, cluster_raw, _Cluster)
        ca = self._pem(cluster_where, cluster_raw, "certificate-authority")
        if ca is not None and cluster.insecure_skip_tls_verify:
            raise Invalid(
                f"{cluster_where}.insecure-skip-tls-verify", "cannot be set beside a certificate authority"
            )
        return Access(
            server=check_server(f"{cluster_where}.server", cluster.server),
            credentials=self._credentials(chosen, where, cluster_raw),
            namespace=chosen.namespace or "default",
            ca=ca,
            server_name=cluster.tls_server_name,
            insecure=cluster.insecure_skip_tls_verify,
        )

    def _credentials(self, context: _Context, where: str, cluster: dict[str, Any]) -> CredentialSource:
        if not context.user:
            return FixedCredential()
        user_where, raw = self._entry("users", "user", context.user, f"{where}.user")
        _refuse(user_where, raw, _REFUSED_USER)
        user = _convert(user_where, raw, _User)
        certificate = self._pem(user_where, raw, "client-certificate")
        key = self._pem(user_where, raw, "client-key")
        if (certificate is None) != (key is None):
            missing = "client-key" if key is None else "client-certificate"
            raise Invalid(f"{user_where}.{missing}", "is missing")
        if user.exec is not None:
            if certificate is not None or user.token or user.token_file:
                raise Invalid(f"{user_where}.exec", "cannot be used beside a token or a client certificate")
            return self._exec(f"{user_where}.exec", user.exec, cluster)
        token_file = self._directory / user.token_file if user.token_file else None
        return FixedCredential(user.token, token_file, certificate, key, f"{user_where}.tokenFile")

    def _exec(self, where: str, found: _Exec, cluster: dict[str, Any]) -> ExecCredential:
        check_exec(where, found.api_version, found.command, found.interactive_mode)
        return ExecCredential(
            ExecSettings(
                where=where,
                api_version=found.api_version,
                command=found.command,
                args=found.args or (),
                env=tuple((item.name, item.value) for item in found.env or ()),
                directory=self._directory,
                install_hint=found.install_hint,
                cluster=self._cluster_info(cluster) if found.provide_cluster_info else None,
            )
        )

    def _cluster_info(self, cluster: dict[str, Any]) -> dict[str, Any]:
        """What a plugin is told of the cluster, by the names of its own API."""
        ca = self._pem("cluster", cluster, "certificate-authority")
        info: dict[str, Any] = {"server": cluster.get("server", ""), "config": None}
        for extension in cluster.get("extensions") or ():
            if isinstance(extension, dict) and extension.get("name") == f"{_EXEC_GROUP}/exec":
                info["config"] = extension.get("extension")
        if ca is not None:
            info["certificate-authority-data"] = base64.b64encode(ca.read()).decode()
        for key in ("tls-server-name", "insecure-skip-tls-verify"):
            if cluster.get(key):
                info[key] = cluster[key]
        return info

    def _pem(self, where: str, raw: dict[str, Any], key: str) -> Pem | None:
        """Certificates or a key; inline data goes before the file, as everywhere else."""
        inline = raw.get(f"{key}-data")
        if inline:
            try:
                return Pem(f"{where}.{key}-data", data=base64.b64decode(inline, validate=False))
            except (binascii.Error, ValueError) as error:
                raise Invalid(f"{where}.{key}-data", f"is not base64: {error}") from error
        return Pem(f"{where}.{key}", file=self._directory / raw[key]) if raw.get(key) else None

    def _entry(self, plural: str, singular: str, name: str, wanted_by: str) -> tuple[str, dict[str, Any]]:
        """Where the named entry is, and its content."""
        entries = self._values.get(plural) or []
        if not isinstance(entries, list):
            raise Invalid(plural, "must be a list")
        for index, entry in enumerate(entries):
            if isinstance(entry, dict) and entry.get("name") == name:
                where = f"{plural}[{index}].{singular}"
                content = entry.get(singular) or {}
                if not isinstance(content, dict):
                    raise Invalid(where, "must be a mapping")
                return where, content
        raise Invalid(wanted_by, f"names {name!r}, which is not in {plural}")


_EXEC_GROUP: Final = "client.authentication.k8s.io"
_T = TypeVar("_T")


def _convert(where: str, raw: dict[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert({key: value for key, value in raw.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        found = _FAULT.fullmatch(str(error))
        assert found is not None
        raise Invalid(f"{where}.{found['path']}" if found["path"] else where, found["message"]) from None


def _refuse(where: str, raw: dict[str, Any], refused: dict[str, str]) -> None:
    for key, reason in refused.items():
        if raw.get(key):
            raise Invalid(f"{where}.{key}", reason)
