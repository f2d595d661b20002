"""kubeconfig files and the configuration inside a pod: what is read, what is refused, and by which name."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from samewire.errors import Invalid
from samewire.kube.access import TlsContexts
from samewire.kube.auth import Credential, FixedCredential
from samewire.kube.exec_plugin import ExecCredential
from samewire.kube.kubeconfig import in_cluster, load_kubeconfig
from samewire.kube.manifests import ManifestSource
from samewire.kube.open import SourceConfig, open_source

V1 = "client.authentication.k8s.io/v1"


def write(directory: Path, **changes: Any) -> Path:
    """A kubeconfig with one cluster, user and context; ``cluster`` and ``user`` replace what these hold."""
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "main",
        "clusters": [{"name": "c", "cluster": changes.get("cluster", {"server": "https://10.0.0.1:6443"})}],
        "users": [{"name": "other", "user": {}}, {"name": "u", "user": changes.get("user", {"token": "t"})}],
        "contexts": [
            {"name": "main", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
            {"name": "anonymous", "context": {"cluster": "c"}},
            {"name": "lost", "context": {"cluster": "nowhere", "user": "u"}},
        ],
        **changes.get("top", {}),
    }
    path = directory / "config"
    path.write_text(yaml.safe_dump(content))
    return path


def exec_user(**changes: Any) -> dict[str, Any]:
    """A user with a plugin."""
    return {"exec": {"apiVersion": V1, "command": "get-token", "interactiveMode": "Never", **changes}}


async def test_a_token(tmp_path: Path) -> None:
    access = load_kubeconfig(write(tmp_path))
    assert (access.server, access.namespace, access.ca) == ("https://10.0.0.1:6443", "team", None)
    assert await access.credentials.get() == Credential("t")


async def test_another_context(tmp_path: Path) -> None:
    access = load_kubeconfig(write(tmp_path), "anonymous")
    assert access.namespace == "default"
    assert await access.credentials.get() == Credential()


async def test_files_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    for name in ("ca", "crt", "key"):
        (tmp_path / "pki" / name).write_bytes(name.encode())
    (tmp_path / "pki" / "token").write_text("from file\n")
    cluster = {"server": "https://h", "certificate-authority": "pki/ca", "tls-server-name": "k8s"}
    user = {"client-certificate": "pki/crt", "client-key": "pki/key", "tokenFile": "pki/token"}
    access = load_kubeconfig(write(tmp_path, cluster=cluster, user=user))
    assert access.ca is not None
    assert (access.ca.read(), access.server_name) == (b"ca", "k8s")
    assert await access.credentials.get() == Credential("from file", b"crt", b"key")


async def test_inline_data_goes_before_files(tmp_path: Path) -> None:
    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    cluster = {
        "server": "https://h",
        "certificate-authority": "gone",
        "certificate-authority-data": b64("CA"),
    }
    user = {"client-certificate-data": b64("CRT"), "client-key-data": b64("KEY"), "client-key": "gone"}
    access = load_kubeconfig(write(tmp_path, cluster=cluster, user=user))
    assert access.ca is not None
    assert access.ca.read() == b"CA"
    assert await access.credentials.get() == Credential("", b"CRT", b"KEY")


def test_a_plugin(tmp_path: Path) -> None:
    access = load_kubeconfig(
        write(tmp_path, user=exec_user(args=["-r", "x"], env=[{"name": "A", "value": "b"}]))
    )
    assert isinstance(access.credentials, ExecCredential)


def test_null_is_as_absent(tmp_path: Path) -> None:
    """Programs that write kubeconfigs leave such."""
    user = exec_user(args=None, env=[{"name": "A", "value": None}], installHint=None, provideClusterInfo=None)
    access = load_kubeconfig(
        write(tmp_path, cluster={"server": "https://h", "proxy-url": None}, user={**user, "token": None})
    )
    assert isinstance(access.credentials, ExecCredential)


def test_what_a_plugin_is_told_of_the_cluster_has_to_be_there(tmp_path: Path) -> None:
    cluster = {"server": "https://h", "extensions": 5}
    path = write(tmp_path, cluster=cluster, user=exec_user(provideClusterInfo=True))
    with pytest.raises(Invalid, match=r"clusters\[0\].cluster.extensions: must be a list"):
        load_kubeconfig(path)


def test_an_insecure_server_is_not_looked_at(tmp_path: Path) -> None:
    access = load_kubeconfig(
        write(tmp_path, cluster={"server": "https://h", "insecure-skip-tls-verify": True})
    )
    context = TlsContexts(access).get(Credential())
    assert context is not None
    assert not context.check_hostname


def test_plain_http_has_no_tls(tmp_path: Path) -> None:
    access = load_kubeconfig(write(tmp_path, cluster={"server": "http://h:8080/"}))
    assert access.server == "http://h:8080"
    assert TlsContexts(access).get(Credential()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": {"current-context": ""}}, "current-context: is missing"),
        ({"top": {"current-context": "x"}}, "current-context: names 'x', which is not in contexts"),
        ({"top": {"current-context": "lost"}}, r"contexts\[2\].context.cluster: names 'nowhere'"),
        ({"top": {"clusters": {}}}, "names 'c', which is not in clusters"),
        ({"top": {"clusters": "x"}}, "clusters: must be a list"),
        ({"cluster": {}}, r"clusters\[0\].cluster.server: '' is no URL"),
        ({"cluster": {"server": "ftp://h"}}, r"clusters\[0\].cluster.server: 'ftp://h' is no URL"),
        ({"cluster": {"server": "https://h:99999"}}, r"clusters\[0\].cluster.server: .* is no URL"),
        ({"cluster": {"server": "https://me:x@h"}}, r"clusters\[0\].cluster.server: names a user"),
        ({"cluster": {"server": "ftp://me:x@h"}}, r"clusters\[0\].cluster.server: 'ftp://\*@h' is no URL"),
        (
            {"cluster": {"server": "https://h", "proxy-url": "socks5://me:x@p:1080"}},
            r"clusters\[0\].cluster.proxy-url: 'socks5://\*@p:1080' is no URL",
        ),
        ({"cluster": {"server": ["h"]}}, r"clusters\[0\].cluster.server: Expected `str`"),
        (
            {"cluster": {"server": "https://h", "proxy-url": "socks5://p:1080"}},
            r"clusters\[0\].cluster.proxy-url: 'socks5://p:1080' is no URL of an HTTP proxy",
        ),
        (
            {
                "cluster": {
                    "server": "https://h",
                    "certificate-authority-data": "A",
                    "insecure-skip-tls-verify": True,
                }
            },
            "certificate-authority-data: is not base64",
        ),
        (
            {
                "cluster": {
                    "server": "https://h",
                    "certificate-authority": "a",
                    "insecure-skip-tls-verify": True,
                }
            },
            "insecure-skip-tls-verify: cannot be set beside",
        ),
        (
            {"user": {"username": "admin", "password": "x"}},
            r"users\[1\].user.username: basic authentication left",
        ),
        (
            {"user": {"auth-provider": {"name": "gcp"}}},
            r"users\[1\].user.auth-provider: left Kubernetes with 1.26",
        ),
        ({"user": {"token": "t", "as-groups": ["g"]}}, r"users\[1\].user.as: is missing"),
        ({"user": {"token": "t", "as-groups": "g"}}, r"users\[1\].user.as-groups: Expected `array`"),
        ({"user": {"client-certificate": "x"}}, r"users\[1\].user.client-key: is missing"),
        ({"user": {"client-key": "x"}}, r"users\[1\].user.client-certificate: is missing"),
        ({"user": {"token": 5}}, r"users\[1\].user.token: Expected `str`, got `int`"),
        (
            {"user": exec_user(apiVersion="client.authentication.k8s.io/v1alpha1")},
            "user.exec.apiVersion: is '.*v1alpha1'",
        ),
        ({"user": exec_user(command="")}, "user.exec.command: is missing"),
        ({"user": exec_user(interactiveMode="Always")}, "user.exec.interactiveMode: is Always"),
        ({"user": exec_user(interactiveMode="")}, "user.exec.interactiveMode: must be given"),
        ({"user": {**exec_user(), "token": "t"}}, "user.exec: cannot be used beside"),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        load_kubeconfig(write(tmp_path, **changes))
    assert str(caught.value).startswith(str(tmp_path / "config"))


def test_who_one_wants_to_be_taken_for(tmp_path: Path) -> None:
    user = {"token": "t", "as": "jane", "as-uid": "7", "as-groups": ["dev", "ops"],
            "as-user-extra": {"Example.org/Reason": ["a", "b"]}}  # fmt: skip
    assert load_kubeconfig(write(tmp_path, user=user)).impersonation == (
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Extra-example.org%2Freason", "a"),
        ("Impersonate-Extra-example.org%2Freason", "b"),
    )


async def test_of_several_files_the_first_that_has_a_name_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        (directory / "token").write_text(f"of {directory.name}")
    one = write(first, top={"current-context": "", "clusters": []}, user={"tokenFile": "token"})
    two = write(
        second, top={"users": []}, cluster={"server": "https://second", "certificate-authority": "ca"}
    )
    access = load_kubeconfig(f"{one}:{tmp_path / 'gone'}:{two}")
    assert access.server == "https://second"
    assert access.ca is not None
    assert access.ca.file == second / "ca"
    assert await access.credentials.get() == Credential("of first")
    empty = tmp_path / "empty"
    for text in ("", "# nothing yet\n"):
        empty.write_text(text)
        assert load_kubeconfig(f"{empty}:{one}:{two}").server == "https://second"
    with pytest.raises(Invalid, match=f"^{two}: current-context: names 'x'"):
        load_kubeconfig(
            f"{write(first, top={'current-context': ''})}:{write(second, top={'current-context': 'x'})}"
        )
    with pytest.raises(Invalid, match="nowhere: cannot be read"):
        load_kubeconfig(f"{tmp_path / 'gone'}:{tmp_path / 'nowhere'}")


def test_what_is_no_kubeconfig(tmp_path: Path) -> None:
    path = tmp_path / "config"
    for text, message in (
        ("a: [", "is not YAML: .* in line"),
        ("- a", "not a mapping"),
        ("", "current-context: is missing"),
    ):
        path.write_text(text)
        with pytest.raises(Invalid, match=message):
            load_kubeconfig(path)
    with pytest.raises(Invalid, match="cannot be read"):
        load_kubeconfig(tmp_path / "gone")


def test_json_needs_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text('{"current-context":"m","contexts":[{"name":"m","context":{"cluster":"c"}}],'
                    '"clusters":[{"name":"c","cluster":{"server":"https://h"}}]}')  # fmt: skip
    assert load_kubeconfig(path).server == "https://h"


async def test_inside_a_pod(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mine")
    (tmp_path / "ca.crt").write_text("CA")
    (tmp_path / "namespace").write_text("kube-system")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = in_cluster(environment, tmp_path)
    assert (access.server, access.namespace) == ("https://[fd00::1]:443", "kube-system")
    assert isinstance(access.credentials, FixedCredential)
    assert await access.credentials.get() == Credential("mine")
    with pytest.raises(Invalid, match=r"^in_cluster: KUBERNETES_SERVICE_HOST .* this is no pod"):
        in_cluster({}, tmp_path)
    (tmp_path / "token").unlink()
    with pytest.raises(Invalid, match="token: is missing"):
        in_cluster(environment, tmp_path)


async def test_a_source_has_one_origin(tmp_path: Path) -> None:
    for config in (SourceConfig(), SourceConfig(in_cluster=True, manifests="x")):
        with pytest.raises(Invalid, match="exactly one of"):
            open_source(config)
    with pytest.raises(Invalid, match="service_cidrs"):
        open_source(SourceConfig(manifests="x", service_cidrs=("10.0.0.1/8",)))
    assert isinstance(open_source(SourceConfig(manifests=str(tmp_path))), ManifestSource)
    source = open_source(SourceConfig(kubeconfig=str(write(tmp_path)), pods_of_node="n"))
    await source.close()
