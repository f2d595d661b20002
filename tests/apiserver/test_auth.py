"""Who we are, and whom we trust, against a server that looks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from samewire.errors import Invalid, Unavailable
from samewire.kube import exec_plugin
from samewire.kube.access import Access
from samewire.kube.auth import Credential, CredentialSource, FixedCredential, Pem
from samewire.kube.client import KubeClient
from samewire.kube.errors import ApiError
from samewire.kube.exec_plugin import ExecCredential, ExecSettings
from samewire.kube.kubeconfig import in_cluster, load_kubeconfig
from samewire.kube.model import Service
from tests.apiserver.certs import SERVER_NAME, Certificates, make_certificates
from tests.apiserver.conftest import Opener
from tests.apiserver.fake_server import FakeServer
from tests.apiserver.objects import Recorder, service, until

V1 = "client.authentication.k8s.io/v1"


async def ask(
    server: FakeServer,
    credentials: CredentialSource,
    ca: Pem | None = None,
    name: str = "",
    *,
    insecure: bool = False,
) -> bytes:
    """One list of Services."""
    client = KubeClient(Access(server.url, credentials, ca=ca, server_name=name, insecure=insecure))
    try:
        return await client.request("GET", "/api/v1/services")
    finally:
        await client.close()


def plugin(directory: Path, script: str, api_version: str = V1, **more: str) -> ExecSettings:
    """Settings of a plugin that is this shell script."""
    path = directory / "plugin"
    path.write_text(f"#!/bin/sh\necho run >> {directory}/runs\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return ExecSettings("users[0].user.exec", api_version, str(path), env=tuple(more.items()))


def answers(token: str, expires: str = "") -> str:
    """A script that prints a credential."""
    expiry = f', "expirationTimestamp": "{expires}"' if expires else ""
    return f"""cat <<'END'
{{"apiVersion": "{V1}", "kind": "ExecCredential", "status": {{"token": "{token}"{expiry}}}}}
END"""


def write_kubeconfig(path: Path, cluster: Mapping[str, object], user: Mapping[str, object]) -> None:
    """A kubeconfig with one cluster and one user."""
    content = {
        "current-context": "m",
        "contexts": [{"name": "m", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(content))


def runs(directory: Path) -> int:
    """How often the plugin was run."""
    path = directory / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_a_token_is_needed(server: FakeServer) -> None:
    server.tokens = {"right"}
    await ask(server, FixedCredential("right"))
    with pytest.raises(ApiError, match="401 Unauthorized"):
        await ask(server, FixedCredential("wrong"))


async def test_a_rotated_token_file_is_read_again(
    server: FakeServer, open_api: Opener, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    server.tokens = {"first"}
    source = open_api(FixedCredential(token_file=path))
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await until(lambda: server.watching("services"))
    server.tokens = {"second"}
    server.disturb("close")
    await until(lambda: "401" in source.health()[0].error)
    path.write_text("second\n")
    server.store.put("services", service("a", "web"))
    await until(lambda: told.cache)
    assert len(server.requests("list", "services")) == 1


async def test_an_emptied_token_file_leaves_the_last_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    credentials = FixedCredential(token_file=path)
    assert (await credentials.get()).token == "first"
    path.write_text("")
    assert (await credentials.get()).token == "first"
    path.unlink()
    assert (await credentials.get()).token == "first"
    with pytest.raises(Invalid, match="tokenFile: cannot be read"):
        await FixedCredential(token_file=path).get()


async def test_the_server_is_known_by_its_authority(certificates: Certificates, tmp_path: Path) -> None:
    ca = Pem("ca", file=certificates.ca)
    async with FakeServer().serve(certificates.server_context()) as server:
        await ask(server, FixedCredential(), ca)
        await ask(server, FixedCredential(), ca, SERVER_NAME)
        await ask(server, FixedCredential(), insecure=True)
        with pytest.raises(Unavailable, match=r"(?i)hostname mismatch|certificate"):
            await ask(server, FixedCredential(), ca, "somebody.else")
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await ask(server, FixedCredential())
        stranger = Pem("ca", file=make_certificates(tmp_path).ca)
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await ask(server, FixedCredential(), stranger)
        with pytest.raises(Invalid, match=r"clusters\[0\].ca: holds no PEM"):
            await ask(server, FixedCredential(), Pem("clusters[0].ca", data=b"rubbish"))


@pytest.mark.parametrize("spelling", ["HTTPS:", " https:", "ht\ttps:"])
async def test_a_server_is_looked_at_however_its_url_is_written(
    certificates: Certificates, tmp_path: Path, spelling: str
) -> None:
    """As Python reads URLs, all of these are https://; who is not known must not get our token."""
    path = tmp_path / "config"
    async with FakeServer().serve(certificates.server_context()) as server:
        cluster: dict[str, object] = {"server": server.url.replace("https:", spelling)}
        for ca in ({}, {"certificate-authority": str(certificates.ca)}):
            write_kubeconfig(path, {**cluster, **ca}, {"token": "secret"})
            client = KubeClient(load_kubeconfig(path))
            if ca:
                await client.request("GET", "/api/v1/services")
            else:
                with pytest.raises(Unavailable, match=r"(?i)certificate"):
                    await client.request("GET", "/api/v1/services")
                assert not server.seen
            await client.close()


async def test_a_pod_knows_its_server(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mine")
    (tmp_path / "ca.crt").write_bytes(certificates.ca.read_bytes())
    async with FakeServer().serve(certificates.server_context()) as server:
        server.tokens = {"mine"}
        port = server.url.rpartition(":")[2]
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
        client = KubeClient(in_cluster(environment, tmp_path))
        await client.request("GET", "/api/v1/services")
        await client.close()


async def test_an_authority_with_a_comment(certificates: Certificates) -> None:
    """Bundles of authorities have such: their names, in any alphabet."""
    text = certificates.ca.read_bytes()
    async with FakeServer().serve(certificates.server_context()) as server:
        for comment in ("# Főtanúsítvány\n".encode(), b"\xef\xbb\xbf", b"# Autorit\xe9\n"):
            await ask(server, FixedCredential(), Pem("ca", data=comment + text))


async def test_a_client_certificate_is_shown(certificates: Certificates) -> None:
    ca = Pem("ca", file=certificates.ca)
    inline = FixedCredential(
        certificate=Pem("c", data=certificates.client.read_bytes()),
        key=Pem("k", data=certificates.client_key.read_bytes()),
    )
    by_file = FixedCredential(
        certificate=Pem("c", file=certificates.client), key=Pem("k", file=certificates.client_key)
    )
    async with FakeServer().serve(certificates.server_context(client_required=True)) as server:
        await ask(server, inline, ca)
        await ask(server, by_file, ca)
        with pytest.raises(Unavailable):
            await ask(server, FixedCredential(), ca)


async def test_a_renewed_client_certificate_is_used(certificates: Certificates, tmp_path: Path) -> None:
    """A kubelet's certificate is replaced while we run; here, first of all, by one of another authority."""
    stranger = make_certificates(tmp_path)
    certificate, key = tmp_path / "mine.crt", tmp_path / "mine.key"
    certificate.write_bytes(stranger.client.read_bytes())
    key.write_bytes(stranger.client_key.read_bytes())
    credentials = FixedCredential(certificate=Pem("c", file=certificate), key=Pem("k", file=key))
    async with FakeServer().serve(certificates.server_context(client_required=True)) as server:
        client = KubeClient(Access(server.url, credentials, ca=Pem("ca", file=certificates.ca)))
        with pytest.raises(Unavailable):
            await client.request("GET", "/api/v1/services")
        certificate.write_bytes(certificates.client.read_bytes())
        key.write_bytes(certificates.client_key.read_bytes())
        await client.request("GET", "/api/v1/services")
        await client.close()


async def test_a_key_that_does_not_fit_is_named(certificates: Certificates, tmp_path: Path) -> None:
    stranger = make_certificates(tmp_path)
    credentials = FixedCredential(
        certificate=Pem("c", file=certificates.client), key=Pem("k", file=stranger.client_key)
    )
    async with FakeServer().serve(certificates.server_context()) as server:
        with pytest.raises(Invalid, match="certificate and key do not fit"):
            await ask(server, credentials, Pem("ca", file=certificates.ca))


async def test_a_plugin_gives_the_token_once(server: FakeServer, tmp_path: Path) -> None:
    server.tokens = {"from-plugin"}
    credentials = ExecCredential(plugin(tmp_path, answers("from-plugin")))
    await ask(server, credentials)
    await ask(server, credentials)
    assert runs(tmp_path) == 1


@pytest.mark.parametrize(
    "text",
    [
        f'{{"apiVersion": "{V1}", "kind": "ExecCredential", "status": {{"token": "t", "clientKeyData": null}}}}',
        f"apiVersion: {V1}\nkind: ExecCredential\nstatus:\n  expirationTimestamp: 2100-01-01T00:00:00Z\n  token: t\n",
    ],
)
async def test_a_plugin_may_answer_as_kubectl_takes_it(tmp_path: Path, text: str) -> None:
    """With nulls, and as YAML."""
    credentials = ExecCredential(plugin(tmp_path, f"cat <<'END'\n{text}\nEND"))
    assert await credentials.get() == Credential("t")
    await credentials.get()
    assert runs(tmp_path) == 1


async def test_a_plugin_is_run_again_after_a_refusal(server: FakeServer, tmp_path: Path) -> None:
    server.tokens = {"new"}
    script = f"if [ $(wc -l < {tmp_path}/runs) = 1 ]; then\n{answers('old')}\nelse\n{answers('new')}\nfi"
    credentials = ExecCredential(plugin(tmp_path, script))
    await ask(server, credentials)
    assert runs(tmp_path) == 2
    server.tokens = {"none"}
    with pytest.raises(ApiError, match="401"):
        await ask(server, credentials)
    assert runs(tmp_path) == 3


async def test_a_refusal_of_an_old_credential_does_not_drop_the_new_one(tmp_path: Path) -> None:
    credentials = ExecCredential(plugin(tmp_path, answers("one")))
    first = await credentials.get()
    assert credentials.reject(first)
    await credentials.get()
    assert credentials.reject(first)
    await credentials.get()
    assert runs(tmp_path) == 2


async def test_a_plugin_is_run_again_when_its_answer_expires(tmp_path: Path) -> None:
    """With the wall clock, which may jump: forward means a run too many, back is mended by the server's 401."""
    now_s = 1_800_000_000.0  # 2027-01-15T08:00:00Z
    script = answers("x", expires="2027-01-15T09:00:00Z")
    credentials = ExecCredential(plugin(tmp_path, script), wall_clock=lambda: now_s)
    await credentials.get()
    now_s += 3000
    await credentials.get()
    assert runs(tmp_path) == 1
    now_s += 595
    await credentials.get()
    assert runs(tmp_path) == 2, "shortly before the end"
    now_s -= 86400 * 365
    kept = await credentials.get()
    assert runs(tmp_path) == 2
    credentials.reject(kept)
    await credentials.get()
    assert runs(tmp_path) == 3


async def test_a_plugin_gives_a_client_certificate(certificates: Certificates, tmp_path: Path) -> None:
    script = f"""/usr/bin/env python3 -c '
import json, pathlib, sys
certificate, key = (pathlib.Path(name).read_text() for name in sys.argv[1:])
status = {{"clientCertificateData": certificate, "clientKeyData": key}}
print(json.dumps({{"apiVersion": "{V1}", "kind": "ExecCredential", "status": status}}))
' {certificates.client} {certificates.client_key}"""
    async with FakeServer().serve(certificates.server_context(client_required=True)) as server:
        await ask(server, ExecCredential(plugin(tmp_path, script)), Pem("ca", file=certificates.ca))


async def test_a_plugin_sees_its_environment_and_no_terminal(tmp_path: Path) -> None:
    script = f'test -t 0 && exit 9\ncat > {tmp_path}/stdin\necho "$REGION $KUBERNETES_EXEC_INFO" > {tmp_path}/seen\n'
    settings = plugin(tmp_path, script + answers("x"), REGION="north")
    await ExecCredential(settings).get()
    seen = (tmp_path / "seen").read_text()
    assert seen.startswith("north {")
    assert '"interactive":false' in seen
    assert f'"apiVersion":"{V1}"' in seen
    assert (tmp_path / "stdin").read_text() == ""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no such account >&2; exit 3", "failed with status 3: no such account"),
        ("echo TOPSECRET", "printed no ExecCredential"),
        ('printf \'{"TOPSECRET": "\\377"}\'', "printed no ExecCredential: neither JSON nor YAML"),
        ("echo '*TOPSECRET'", "printed no ExecCredential: neither JSON nor YAML"),
        ("cat /dev/zero", "printed more than 1 MiB"),
        ("cat /dev/zero >&2", "printed more than 1 MiB"),
        ('echo \'{"apiVersion": "v1", "kind": "Secret"}\'', "answered v1 Secret, not"),
        (f'echo \'{{"apiVersion": "{V1}", "kind": "ExecCredential"}}\'', "without a status"),
        (
            f'echo \'{{"apiVersion": "{V1}", "kind": "ExecCredential", "status": {{}}}}\'',
            "neither a token nor a client certificate",
        ),
        (
            f'echo \'{{"apiVersion": "{V1}", "kind": "ExecCredential", "status": {{"clientKeyData": "TOPSECRET"}}}}\'',
            "a key without its certificate",
        ),
    ],
)
async def test_a_plugin_that_fails_says_how(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(Unavailable, match=message) as caught:
        await ExecCredential(plugin(tmp_path, script)).get()
    assert "users[0].user.exec" in str(caught.value)
    assert "TOPSECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "script", ["sleep {0} & {1}; wait", "sleep {0} & {1}", "setsid sleep {0} & {1}; wait"]
)
async def test_a_plugin_that_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """Also those that keep its output open when it has ended itself. Nobody waits for one that got away."""
    note = tmp_path / "child"
    got_away = script.startswith("setsid")
    # Long, and short enough for who waits for it to be found out by the test's own bound.
    credentials = ExecCredential(plugin(tmp_path, script.format(60, f"echo $! > {note}")))
    for timeout_s in (0.3, 1.5, 7.5):  # until it gets as far on this machine
        monkeypatch.setattr(exec_plugin, "_RUN_TIMEOUT_S", timeout_s)
        with pytest.raises(Unavailable, match=f"did not end in {timeout_s} s"):
            async with asyncio.timeout(30):
                await credentials.get()
        if note.exists() and note.read_text().endswith("\n"):
            break
    child = int(note.read_text())
    if got_away:
        os.kill(child, signal.SIGKILL)
    state = Path(f"/proc/{child}/stat")
    await until(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.parametrize("command", ["./plugin", "bin/../plugin"])
async def test_a_plugin_beside_a_kubeconfig_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Nothing of the same name is looked for in $PATH."""
    (tmp_path / "bin").mkdir()
    plugin(tmp_path, answers("x"))
    monkeypatch.chdir(tmp_path)
    user = {"exec": {"apiVersion": V1, "command": command, "interactiveMode": "Never"}}
    write_kubeconfig(tmp_path / "config", {"server": "https://h"}, user)
    assert await load_kubeconfig("config").credentials.get() == Credential("x")


async def test_a_plugin_that_is_not_there_gives_its_hint(tmp_path: Path) -> None:
    settings = ExecSettings(
        "users[0].user.exec", V1, str(tmp_path / "gone"), install_hint="install the thing"
    )
    with pytest.raises(Unavailable, match="install the thing"):
        await ExecCredential(settings).get()


async def test_a_failing_plugin_is_tried_again(server: FakeServer, open_api: Opener, tmp_path: Path) -> None:
    server.tokens = {"late"}
    server.store.put("services", service("a", "web"))
    script = f"if [ $(wc -l < {tmp_path}/runs) -lt 3 ]; then\necho not yet >&2\nexit 1\nfi\n{answers('late')}"
    source = open_api(ExecCredential(plugin(tmp_path, script)))
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await until(lambda: told.cache)
    assert source.counts()["Service"].failures == 2


def test_credentials_do_not_show_themselves() -> None:
    assert "TOPSECRET" not in repr(Credential("TOPSECRET", b"TOPSECRET", b"TOPSECRET"))
    assert "TOPSECRET" not in repr(Pem("key", data=b"TOPSECRET"))
