"""HCN errors: an HRESULT and a text, the way HNS clients expect them."""

from __future__ import annotations

import enum
from typing import NoReturn

from samewire.errors import SamewireError

_BASE = 0x803B0000


class HcnCode(enum.IntEnum):
    """HRESULTs of the Host Compute Network service, and the general ones that its clients test for."""

    NETWORK_NOT_FOUND = _BASE + 0x01
    ENDPOINT_NOT_FOUND = _BASE + 0x02
    LAYER_NOT_FOUND = _BASE + 0x03
    SWITCH_NOT_FOUND = _BASE + 0x04
    SUBNET_NOT_FOUND = _BASE + 0x05
    ADAPTER_NOT_FOUND = _BASE + 0x06
    PORT_NOT_FOUND = _BASE + 0x07
    POLICY_NOT_FOUND = _BASE + 0x08
    VFP_PORTSETTING_NOT_FOUND = _BASE + 0x09
    INVALID_NETWORK = _BASE + 0x0A
    INVALID_NETWORK_TYPE = _BASE + 0x0B
    INVALID_ENDPOINT = _BASE + 0x0C
    INVALID_POLICY = _BASE + 0x0D
    INVALID_POLICY_TYPE = _BASE + 0x0E
    INVALID_REMOTE_ENDPOINT_OPERATION = _BASE + 0x0F
    NETWORK_ALREADY_EXISTS = _BASE + 0x10
    LAYER_ALREADY_EXISTS = _BASE + 0x11
    POLICY_ALREADY_EXISTS = _BASE + 0x12
    PORT_ALREADY_EXISTS = _BASE + 0x13
    ENDPOINT_ALREADY_ATTACHED = _BASE + 0x14
    REQUEST_UNSUPPORTED = _BASE + 0x15
    MAPPING_NOT_SUPPORTED = _BASE + 0x16
    DEGRADED_OPERATION = _BASE + 0x17
    SHARED_SWITCH_MODIFICATION = _BASE + 0x18
    GUID_CONVERSION_FAILURE = _BASE + 0x19
    REGKEY_FAILURE = _BASE + 0x1A
    INVALID_JSON = _BASE + 0x1B
    INVALID_JSON_REFERENCE = _BASE + 0x1C
    ENDPOINT_SHARING_DISABLED = _BASE + 0x1D
    INVALID_IP = _BASE + 0x1E
    SWITCH_EXTENSION_NOT_FOUND = _BASE + 0x1F
    MANAGER_STOPPED = _BASE + 0x20
    GCN_MODULE_NOT_FOUND = _BASE + 0x21
    GCN_NO_REQUEST_HANDLERS = _BASE + 0x22
    GCN_REQUEST_UNSUPPORTED = _BASE + 0x23
    GCN_RUNTIMEKEYS_FAILED = _BASE + 0x24
    GCN_NETADAPTER_TIMEOUT = _BASE + 0x25
    GCN_NETADAPTER_NOT_FOUND = _BASE + 0x26
    GCN_NETCOMPARTMENT_NOT_FOUND = _BASE + 0x27
    GCN_NETINTERFACE_NOT_FOUND = _BASE + 0x28
    GCN_DEFAULTNAMESPACE_EXISTS = _BASE + 0x29
    ICS_DISABLED = _BASE + 0x2A
    ENDPOINT_NAMESPACE_ALREADY_EXISTS = _BASE + 0x2B
    ENTITY_HAS_REFERENCES = _BASE + 0x2C
    INVALID_INTERNAL_PORT = _BASE + 0x2D
    NAMESPACE_ATTACH_FAILED = _BASE + 0x2E
    ADDR_INVALID_OR_RESERVED = _BASE + 0x2F
    INVALID_PREFIX = _BASE + 0x30
    OBJECT_USED_AFTER_UNLOAD = _BASE + 0x31
    INVALID_SUBNET = _BASE + 0x32
    INVALID_IP_SUBNET = _BASE + 0x33
    ENDPOINT_NOT_ATTACHED = _BASE + 0x34
    ENDPOINT_NOT_LOCAL = _BASE + 0x35
    INTERFACEPARAMETERS_ALREADY_APPLIED = _BASE + 0x36
    VFP_NOT_ALLOWED = _BASE + 0x37

    E_NOTIMPL = 0x80004001
    E_FAIL = 0x80004005
    E_ACCESSDENIED = 0x80070005
    E_OUTOFMEMORY = 0x8007000E
    E_INVALIDARG = 0x80070057
    ERROR_NOT_FOUND = 0x80070490
    RPC_SERVER_UNAVAILABLE = 0x800706BA
    OBJECT_ALREADY_EXISTS = 0x80071392


class HcnError(SamewireError):
    """A request that HNS refuses.

    ``code`` is one of `HcnCode`; ``message`` names the field where there is one
    (``$.Policies[0].Settings.VIP: ...``).
    """

    def __init__(self, code: HcnCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def fail(path: str, message: str, code: HcnCode = HcnCode.INVALID_JSON) -> NoReturn:
    """Raise the error of one field."""
    raise HcnError(code, f"{path}: {message}")


class StoreError(SamewireError):
    """The database of wanted objects cannot be trusted or used; ``path`` is its file."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
