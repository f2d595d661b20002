"""The verbs of CNI: ADD, DEL, CHECK, GC, STATUS and VERSION, on a `CniBackend`.

ADD is all or nothing: a step that fails gives back the addresses, and takes the interface away again. DEL may
be repeated, and succeeds when there is nothing. It removes the interface first and then frees the addresses,
as the reference plugins do: an address that is free may be given to the next pod at once, so nothing may
use it any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from samewire.cni.backend import CniBackend, bad_netns
from samewire.cni.conf import (
    Attachment,
    NetConf,
    decode_attachment,
    decode_conf,
    decode_previous,
    decode_valid_attachments,
)
from samewire.cni.dialects import flannel
from samewire.cni.dialects.names import Dialect
from samewire.cni.dialects.plan import dialect_result, network_object, plan_dialect, plan_dialect_check
from samewire.cni.environment import Environment, Verb, decode_environment
from samewire.cni.errors import CniCode, CniError, to_cni_error
from samewire.cni.locks import AttachmentLocks
from samewire.cni.plan import add_result, plan_attach, plan_check
from samewire.cni.result import (
    LATEST,
    SUPPORTED_VERSIONS,
    Result,
    at_least,
    encode_error,
    encode_result,
)
from samewire.errors import SamewireError
from samewire.ipam.api import DuplicateAllocation, Ipam, IpamRequest
from samewire.ipam.delegate import Delegate
from samewire.ipam.host_local import HostLocal

Run = Callable[[IpamRequest, Ipam | None], Awaitable[dict[str, Any] | None]]

FIRST_VERSION = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}

log = structlog.get_logger(__name__)


class Reply(Struct, frozen=True):
    """What the plugin's process does: print ``output`` and exit with ``status``.

    The rest is for the log: the verb, network and attachment asked for, and the error's code, 0 for none.
    """

    status: int
    output: bytes
    verb: str = ""
    network: str = ""
    container_id: str = ""
    interface_name: str = ""
    code: int = 0
    message: str = ""


class CniPlugin:
    """Serves CNI calls. `handle` never raises."""

    def __init__(self, backend: CniBackend) -> None:
        self._backend = backend
        self._host_local = HostLocal()
        self._locks = AttachmentLocks()
        self._verbs: dict[Verb, Run] = {
            Verb.ADD: self._add,
            Verb.DEL: self._del,
            Verb.CHECK: self._check,
            Verb.GC: self._gc,
            Verb.STATUS: self._status,
        }

    async def handle(self, variables: Mapping[str, str], stdin: bytes) -> Reply:
        """Return the answer to one call, given its CNI_* variables and its stdin."""
        call = _Call(variables)
        try:
            return call.reply(0, await self._dispatch(call, stdin))
        except SamewireError as error:
            failure = to_cni_error(error)
        except Exception:
            log.exception("a CNI call failed by a bug", verb=call.verb, network=call.network)
            failure = CniError(CniCode.INTERNAL, "internal error", "the log of the samewire daemon has more")
        return call.reply(1, encode_error(failure, call.version), failure)

    async def _dispatch(self, call: _Call, stdin: bytes) -> dict[str, Any] | None:
        environment = decode_environment(call.variables)
        if environment.verb is Verb.VERSION:
            return version_info(stdin)
        conf = decode_conf(stdin, environment.plugin)
        call.network, call.version = conf.name, conf.cni_version
        first = FIRST_VERSION.get(environment.verb)
        if first and not at_least(conf.cni_version, first):
            raise CniError(
                CniCode.INCOMPATIBLE_VERSION,
                f"cniVersion {conf.cni_version} does not allow {environment.verb}",
            )
        if environment.namespace_id:
            gone = environment.verb is Verb.DEL  # which needs no namespace
            path = "" if gone else await self._backend.namespace_path(environment.namespace_id)
            environment = msgspec.structs.replace(environment, netns_path=path)
        if not conf.flannel:
            return await self._verbs[environment.verb](IpamRequest(conf, environment), self._ipam(conf))
        return await self._delegated(conf, environment)

    async def _delegated(self, conf: NetConf, environment: Environment) -> dict[str, Any] | None:
        """Do what flannel's plugin has its delegate do."""
        delegation = flannel.delegate(conf, environment)
        request = IpamRequest(delegation.conf, environment)
        result = await self._verbs[environment.verb](request, self._ipam(delegation.conf))
        if environment.verb is Verb.DEL:
            flannel.forget(delegation.kept)
        elif environment.verb is Verb.GC:
            flannel.forget_others(conf, (key[0] for key in decode_valid_attachments(conf)))
        return result

    def _ipam(self, conf: NetConf) -> Ipam | None:
        if conf.ipam_type == "host-local":
            return self._host_local
        return Delegate(conf.ipam_type) if conf.ipam_type else None

    async def _add(self, request: IpamRequest, ipam: Ipam | None) -> dict[str, Any]:
        conf, environment = request.conf, request.environment
        wanted = decode_attachment(conf, environment.args)
        if conf.dialect is not None:
            async with self._locks.attachment(conf.name, environment.key):
                return await self._add_in_dialect(request, ipam, conf.dialect, wanted)
        if not environment.netns_path.startswith("/"):
            raise bad_netns(
                environment.netns_path, "expected the absolute path of a network namespace's file"
            )
        async with self._locks.attachment(conf.name, environment.key):
            network = await self._backend.ensure_network(conf.name, wanted.network)
            allocated = await self._allocate(request, ipam) if ipam else None
            try:
                plan = plan_attach(environment, conf, wanted, network, allocated)
                made = await self._backend.attach(plan)
            except Exception:
                await self._undo(request, ipam, detach=False)
                raise
            try:
                return encode_result(add_result(plan, made, wanted.previous), conf.cni_version)
            except Exception:
                await self._undo(request, ipam, detach=True)
                raise

    async def _add_in_dialect(
        self, request: IpamRequest, ipam: Ipam | None, dialect: Dialect, wanted: Attachment
    ) -> dict[str, Any]:
        """ADD as another plugin does it: an interface that is there in the same network is the answer."""
        conf, environment = request.conf, request.environment
        sandbox = environment.sandbox_container
        path = "" if sandbox else environment.netns_path
        found = await self._backend.find(
            sandbox or environment.container_id, environment.interface_name, path
        )
        if sandbox:
            environment = msgspec.structs.replace(environment, container_id=sandbox)
            if found is None or found[0] != conf.name:
                raise bad_netns(environment.netns_path, f"that container has no endpoint in {conf.name}")
        if found is not None and found[0] == conf.name:
            dns = wanted.runtime_dns.over(wanted.dns)
            result = dialect_result(conf, dialect, environment, found[1], dns, wanted.previous)
            return encode_result(result, conf.cni_version)
        if found is not None:
            await self._detach(request)  # that of another network is taken for a corrupt one
        network = None if dialect.creates_network else await self._backend.ensure_network(conf.name, None)
        allocated = await self._allocate(request, ipam) if ipam else None
        try:
            if network is None:
                wish = network_object(conf, dialect, allocated)
                network = await self._backend.ensure_network(conf.name, wish)
            plan = plan_dialect(environment, conf, dialect, wanted, network, allocated)
            made = await self._backend.attach(plan)
        except Exception:
            await self._undo(request, ipam, detach=False)
            raise
        result = dialect_result(conf, dialect, environment, made, plan.dns, wanted.previous)
        try:
            return encode_result(result, conf.cni_version)
        except Exception:
            await self._undo(request, ipam, detach=True)
            raise

    async def _allocate(self, request: IpamRequest, ipam: Ipam) -> Result:
        """Return what IPAM allots; what a dead attachment has left, or an ADD that did not get further, goes first.

        An interface that is there keeps its own: what undoes an ADD gives back all that the attachment has.
        """
        call = request.environment
        if await self._backend.refuse_attached(call.container_id, call.interface_name, call.netns_path):
            await self._detach(request)
            await ipam.delete(request)
        try:
            result = await ipam.add(request)
        except DuplicateAllocation:
            await ipam.delete(request)
            result = await ipam.add(request)
        if not result.ips:
            await self._undo(request, ipam, detach=False)
            raise CniError(CniCode.IPAM_PLUGIN, f"IPAM plugin {request.conf.ipam_type} returned no addresses")
        return result

    async def _undo(self, request: IpamRequest, ipam: Ipam | None, *, detach: bool) -> None:
        """Take back the steps of an ADD; what fails here is left to DEL, which the runtime owes us."""
        try:
            if detach:
                await self._detach(request)
            if ipam:
                await ipam.delete(request)
        except SamewireError as error:
            log.warning("could not undo a failed ADD", network=request.conf.name, error=str(error))

    async def _del(self, request: IpamRequest, ipam: Ipam | None) -> None:
        if request.environment.sandbox_container:
            return  # of a container that shares another's namespace: nothing was made for it
        async with self._locks.attachment(request.conf.name, request.environment.key):
            await self._detach(request)
            if ipam:
                await ipam.delete(request)

    async def _detach(self, request: IpamRequest) -> None:
        call = request.environment
        await self._backend.detach(call.container_id, call.interface_name)

    async def _check(self, request: IpamRequest, ipam: Ipam | None) -> None:
        previous = decode_previous(request.conf)
        if previous is None:
            raise CniError(CniCode.INVALID_CONFIG, "prevResult: is required for CHECK")
        async with self._locks.attachment(request.conf.name, request.environment.key):
            if ipam:
                await ipam.check(request)
            dialect = request.conf.dialect
            plan = (
                plan_check(request.environment, request.conf, previous)
                if dialect is None
                else plan_dialect_check(request.environment, request.conf, dialect, previous)
            )
            await self._backend.check(plan)

    async def _gc(self, request: IpamRequest, ipam: Ipam | None) -> None:
        """Remove what is not valid; go on past failures, and report them together."""
        valid = decode_valid_attachments(request.conf)
        failures: list[SamewireError] = []
        async with self._locks.network(request.conf.name):
            for key in await self._backend.list_attachments(request.conf.name):
                if key not in valid and not await _succeeds(failures, self._remove(request, key, ipam)):
                    valid |= {key}  # it still is there, and so its addresses are in use
            if ipam:
                await _succeeds(failures, ipam.collect(request, valid))
        if failures:
            code = to_cni_error(failures[0]).code
            details = "; ".join(str(failure) for failure in failures)
            raise CniError(code, "some attachments could not be removed", details)

    async def _remove(self, request: IpamRequest, key: tuple[str, str], ipam: Ipam | None) -> None:
        """Remove another attachment of the same network."""
        other = _of_attachment(request, key)
        await self._detach(other)
        if ipam:
            await ipam.delete(other)

    async def _status(self, request: IpamRequest, ipam: Ipam | None) -> None:
        try:
            await self._backend.status()
            dialect = request.conf.dialect
            added = request.conf.fields.child("network") or (dialect is not None and dialect.creates_network)
            if not added:  # with the first pod
                await self._backend.ensure_network(request.conf.name, None)
            if ipam:
                await ipam.status(request)
        except SamewireError as error:
            failure = to_cni_error(error)
            if failure.code in (CniCode.NOT_AVAILABLE, CniCode.LIMITED_CONNECTIVITY):
                raise
            raise CniError(CniCode.NOT_AVAILABLE, failure.message, failure.details) from error


def version_info(stdin: bytes) -> dict[str, Any]:
    """Return the answer to VERSION: the ``cniVersion`` of the question where it is known."""
    try:
        asked = msgspec.json.decode(stdin, type=_VersionQuestion).cniVersion
    except (msgspec.DecodeError, UnicodeDecodeError):
        asked = ""
    version = asked if asked in SUPPORTED_VERSIONS else LATEST
    return {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}


class _VersionQuestion(Struct, frozen=True):
    cniVersion: str = ""


class _Call:
    """What is known of a call so far, for its answer and the log."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.verb = variables.get("CNI_COMMAND", "")[:16]
        self.network = ""
        self.version = LATEST

    def reply(self, status: int, value: dict[str, Any] | None, failure: CniError | None = None) -> Reply:
        return Reply(
            status,
            msgspec.json.encode(value) if value is not None else b"",
            self.verb,
            self.network,
            self.variables.get("CNI_CONTAINERID", "")[:128],
            self.variables.get("CNI_IFNAME", "")[:16],
            failure.code if failure else 0,
            str(failure) if failure else "",
        )


async def _succeeds(failures: list[SamewireError], work: Awaitable[None]) -> bool:
    try:
        await work
    except SamewireError as error:
        failures.append(error)
        return False
    return True


def _of_attachment(request: IpamRequest, key: tuple[str, str]) -> IpamRequest:
    """Return the DEL request for another attachment of the same network; its namespace is not known."""
    container_id, interface_name = key
    variables = {
        **request.environment.variables,
        "CNI_CONTAINERID": container_id,
        "CNI_IFNAME": interface_name,
        "CNI_NETNS": "",
    }
    environment = msgspec.structs.replace(
        request.environment,
        verb=Verb.DEL,
        container_id=container_id,
        interface_name=interface_name,
        netns_path="",
        variables=variables,
    )
    return IpamRequest(request.conf, environment)
