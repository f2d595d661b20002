"""Address managers that are executables of their own, called as CNI 1.1 section 4 says.

The plugin is looked for in CNI_PATH and gets the environment and the configuration of our own call. Where it
does not know the configuration's version of CNI, it gets the same configuration in the latest version that
both know, and its answer is converted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from samewire.cni.conf import ATTACHMENT_KEYS, NetConf, as_version
from samewire.cni.environment import Environment, Verb
from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import LATEST, SUPPORTED_VERSIONS, Result, at_least, decode_result
from samewire.ipam.api import IpamRequest
from samewire.ipam.execute import Execution, execute

TIMEOUT_S = 20.0
_DEFAULT_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_Identity = tuple[str, int, int, int]

_versions: dict[_Identity, tuple[str, ...]] = {}
"""The versions of CNI that a plugin's file speaks; asked once for each file as it is."""


class Delegate:
    """The address manager in an executable (an `Ipam`)."""

    def __init__(self, kind: str, timeout_s: float = TIMEOUT_S) -> None:
        self._kind = kind
        self._timeout_s = timeout_s

    async def add(self, request: IpamRequest) -> Result:
        """Run ADD and return its result. Raises CniError, Unavailable."""
        path = self._find(request.environment)
        conf = await self._understood(path, request)
        output = await self._run(path, Verb.ADD, request.environment, conf)
        try:
            result = decode_result(_decode(output), conf.cni_version, "result")
        except (CniError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise CniError(
                CniCode.IPAM_PLUGIN, f"IPAM plugin {self._kind} printed no CNI result", str(error)
            ) from error
        return result

    async def delete(self, request: IpamRequest) -> None:
        """Run DEL. Raises CniError, Unavailable."""
        await self._simply(Verb.DEL, request)

    async def check(self, request: IpamRequest) -> None:
        """Run CHECK, which plugins have from CNI 0.4.0. Raises CniError, Unavailable."""
        path = self._find(request.environment)
        conf = await self._understood(path, request)
        if at_least(conf.cni_version, "0.4.0"):
            await self._run(path, Verb.CHECK, request.environment, conf)

    async def collect(self, request: IpamRequest, valid: frozenset[tuple[str, str]]) -> None:
        """Run GC, which plugins have from CNI 1.1.0. Raises CniError, Unavailable."""
        listed = [{"containerID": container, "ifname": name} for container, name in sorted(valid)]
        keys = dict.fromkeys(ATTACHMENT_KEYS, listed)
        conf = msgspec.structs.replace(request.conf, value={**request.conf.value, **keys})
        await self._if_1_1(Verb.GC, msgspec.structs.replace(request, conf=conf))

    async def status(self, request: IpamRequest) -> None:
        """Run STATUS, which plugins have from CNI 1.1.0; of an older one only the file is looked for."""
        await self._if_1_1(Verb.STATUS, request)

    async def _simply(self, verb: Verb, request: IpamRequest) -> None:
        path = self._find(request.environment)
        await self._run(path, verb, request.environment, await self._understood(path, request))

    async def _if_1_1(self, verb: Verb, request: IpamRequest) -> None:
        path = self._find(request.environment)
        if "1.1.0" in await self._versions_of(path, request.environment):
            await self._run(path, verb, request.environment, request.conf)

    def _find(self, environment: Environment) -> str:
        for directory in environment.path:
            path = f"{directory}/{self._kind}"
            if os.path.isfile(path):
                return path
        searched = ":".join(environment.path)[:1000] or "CNI_PATH, which is empty"
        raise CniError(CniCode.IPAM_PLUGIN, f"IPAM plugin {self._kind!r} not found in {searched}")

    async def _understood(self, path: str, request: IpamRequest) -> NetConf:
        """Return the configuration in a version that the plugin speaks, its own where that is possible."""
        known = await self._versions_of(path, request.environment)
        version = request.conf.cni_version
        if not known or version in known:
            return request.conf
        older = [item for item in SUPPORTED_VERSIONS if item in known and not at_least(item, version)]
        return as_version(request.conf, older[-1]) if older else request.conf

    async def _versions_of(self, path: str, environment: Environment) -> tuple[str, ...]:
        """Return the versions that a plugin reports; none when it does not know VERSION, or ended without an answer."""
        status = os.stat(path)
        identity = (path, status.st_ino, status.st_mtime_ns, status.st_size)
        known = _versions.get(identity)
        if known is None:
            stdin = msgspec.json.encode({"cniVersion": LATEST})
            done = await execute(path, stdin, _variables(environment, Verb.VERSION), self._timeout_s)
            known = _supported(done)
            # Who has just had no memory, or no thread, may answer the next time.
            if _decode_or_none(done.output):
                _versions[identity] = known
        return known

    async def _run(self, path: str, verb: Verb, environment: Environment, conf: NetConf) -> bytes:
        stdin = msgspec.json.encode(conf.value)
        done = await execute(path, stdin, _variables(environment, verb), self._timeout_s)
        if done.status:
            raise self._failure(verb, done)
        return done.output

    def _failure(self, verb: Verb, done: Execution) -> CniError:
        """Return the plugin's own error, or one that says how it ended."""
        error = _decode_or_none(done.output)
        code, message, details = (error.get(key) for key in ("code", "msg", "details"))
        if isinstance(code, int) and isinstance(message, str) and 0 < code < 2**32:
            return CniError(code, message, str(details or f"from IPAM plugin {self._kind}"))
        return CniError(
            CniCode.IPAM_PLUGIN,
            f"IPAM plugin {self._kind} failed at {verb.value} with status {done.status}",
            done.complaint,
        )


def _variables(environment: Environment, verb: Verb) -> dict[str, str]:
    path = os.environ.get("PATH", _DEFAULT_PATH)
    return {"PATH": path, **environment.variables, "CNI_COMMAND": verb.value}


def _supported(done: Execution) -> tuple[str, ...]:
    listed = _decode_or_none(done.output).get("supportedVersions")
    if done.status or not isinstance(listed, list):
        return ()
    return tuple(item for item in SUPPORTED_VERSIONS if item in listed)


def _decode(output: bytes) -> Any:
    return msgspec.json.decode(output)


def _decode_or_none(output: bytes) -> Mapping[str, Any]:
    """Return the JSON object in a plugin's output; an empty one for anything else."""
    try:
        value = _decode(output)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
