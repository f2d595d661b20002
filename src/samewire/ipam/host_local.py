"""The built-in address manager, with host-local's configuration, files and semantics (see `ipam/ranges.py`)."""

from __future__ import annotations

from collections.abc import Iterable

from samewire.cni.conf import requested_ips
from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import address
from samewire.cni.result import Dns, IpConfig, Result
from samewire.errors import Conflict, Exhausted, KernelError
from samewire.ipam.api import DuplicateAllocation, IpamRequest
from samewire.ipam.datadir import DataDir, Key
from samewire.ipam.ranges import Range, RangeSet, decode_directory, decode_host_local


class HostLocal:
    """The address manager ``host-local`` (an `Ipam`), for all networks of the node."""

    def __init__(self) -> None:
        self._directories: dict[str, DataDir] = {}

    async def add(self, request: IpamRequest) -> Result:
        """Give one address of each range set. Raises DuplicateAllocation, Conflict, Exhausted, CniError."""
        conf = decode_host_local(request.conf)
        wanted = [
            address(ip.partition("/")[0]) for ip in requested_ips(request.conf, request.environment.args)
        ]
        dns = _read_resolv_conf(conf.resolv_conf) if conf.resolv_conf else Dns()
        directory = self._directory(conf.directory)
        async with directory.locked():
            ips = _allocate(directory, conf.sets, request.environment.key, wanted)
        return Result((), ips, conf.routes, dns)

    async def delete(self, request: IpamRequest) -> None:
        """Give the attachment's addresses back. Raises KernelError, Unavailable."""
        directory = self._directory(decode_directory(request.conf))
        if directory.exists():
            async with directory.locked():
                directory.release(request.environment.key)

    async def check(self, request: IpamRequest) -> None:
        """Raise CniError(CHECK_FAILED) when the attachment has no address."""
        directory = self._directory(decode_host_local(request.conf).directory)
        async with directory.locked():
            found = directory.addresses_of(request.environment.key)
        if not found:
            raise CniError(
                CniCode.CHECK_FAILED,
                f"host-local has no address for container {request.environment.container_id}",
            )

    async def collect(self, request: IpamRequest, valid: frozenset[Key]) -> None:
        """Give back the addresses of all but these attachments. Raises KernelError, Unavailable."""
        directory = self._directory(decode_directory(request.conf))
        if directory.exists():
            async with directory.locked():
                directory.release_others(valid)

    async def status(self, request: IpamRequest) -> None:
        """Raise when the configuration is wrong or the directory cannot be written."""
        directory = self._directory(decode_host_local(request.conf).directory)
        async with directory.locked():
            pass

    def _directory(self, path: str) -> DataDir:
        return self._directories.setdefault(path, DataDir(path))


def parse_resolv_conf(text: str) -> Dns:
    """Return the settings in the text of a resolv.conf(5); several lines of a kind add up."""
    found: dict[str, list[str]] = {"nameserver": [], "domain": [], "search": [], "options": []}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in found:
            found[words[0]] += words[1:2] if words[0] in ("nameserver", "domain") else words[1:]
    domain = found["domain"][-1] if found["domain"] else ""
    return Dns(tuple(found["nameserver"]), domain, tuple(found["search"]), tuple(found["options"]))


def _allocate(
    directory: DataDir, sets: Iterable[RangeSet], key: Key, wanted: list[str]
) -> tuple[IpConfig, ...]:
    """Take one address of each set, all or none."""
    taken: list[str] = []
    ips: list[IpConfig] = []
    try:
        for number, range_set in enumerate(sets):
            last = directory.last(number)
            _refuse_another(directory, range_set, number, key, taken)
            asked = next((ip for ip in wanted if range_set.range_for(ip)), "")
            if asked:
                wanted.remove(asked)
                span = _take_asked(directory, range_set, number, key, asked)
            else:
                asked, span = _take_next(directory, range_set, number, key, last)
            taken.append(asked)
            ips.append(IpConfig(f"{asked}/{span.prefix_length}", span.gateway))
        if wanted:
            raise Conflict(f"failed to allocate all requested IPs: {' '.join(wanted)}")
    except Exception:
        directory.remove(taken)
        raise
    return tuple(ips)


def _refuse_another(directory: DataDir, range_set: RangeSet, number: int, key: Key, taken: list[str]) -> None:
    """An attachment has one address of a set, also when it asks for the one that it has."""

    def held() -> str:
        known = directory.known_addresses_of(key)
        return next((ip for ip in known if ip not in taken and range_set.range_for(ip)), "")

    if held():
        directory.scan()
    if ip := held():
        raise DuplicateAllocation(
            f"failed to allocate for range {number}: {ip} has been allocated to {key[0]}, "
            "duplicate allocation is not allowed"
        )


def _take_asked(directory: DataDir, range_set: RangeSet, number: int, key: Key, ip: str) -> Range:
    span = range_set.range_for(ip)
    if span is None or ip == span.gateway:
        raise Conflict(f"failed to allocate for range {number}: requested ip {ip} is subnet's gateway")
    if not directory.reserve(ip, key, number):
        raise Conflict(
            f"failed to allocate for range {number}: requested IP address {ip} is not available in "
            f"range set {range_set}"
        )
    return span


def _take_next(
    directory: DataDir, range_set: RangeSet, number: int, key: Key, last: str
) -> tuple[str, Range]:
    for _ in range(2):
        for ip, span in range_set.candidates(last):
            if not directory.is_taken(ip) and directory.reserve(ip, key, number):
                return ip, span
        directory.scan()
    raise Exhausted(
        f"failed to allocate for range {number}", f"no IP addresses available in range set: {range_set}"
    )


def _read_resolv_conf(path: str) -> Dns:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_resolv_conf(file.read())
    except OSError as error:
        raise KernelError(f"read ipam.resolvConf {path}", error.errno or 0) from error
