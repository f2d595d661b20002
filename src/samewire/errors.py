"""The one error tree.

::

    SamewireError
    ├── Invalid(path, message)            input that cannot be accepted; names the field
    ├── NotFound(what, name)
    ├── Conflict(message)                 valid, but clashes with what is there
    ├── Exhausted(resource, message)      a bounded resource is full
    ├── Unsupported(feature, needs)       this kernel or build cannot do it
    ├── Unavailable(service, message)     something we depend on does not answer; worth a retry
    ├── KernelError(operation, errno, detail)
    ├── HcnError(code, message)           in hcn/errors.py: carries an HRESULT
    ├── CniError(code, message, details)  in cni/errors.py: carries a CNI spec code
    └── ApiError(status, reason, message) in kube/errors.py: what a Kubernetes API server refused

Everything that Samewire raises on purpose is below ``SamewireError``; anything else is a bug.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import TypeVar

T = TypeVar("T")


class SamewireError(Exception):
    """Base of all errors raised on purpose."""


class Invalid(SamewireError):
    """Input that cannot be accepted.

    ``path`` names the field (``$.Policies[0].Settings.VIP``, ``nodes[1].pod_cidr``), ``message`` says what is
    wrong and what would be right.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class NotFound(SamewireError):
    """An object that does not exist (as opposed to one that could not be read)."""

    def __init__(self, what: str, name: str, hint: str = "") -> None:
        super().__init__(f"{what} {name!r} not found{f': {hint}' if hint else ''}")
        self.what = what
        self.name = name


class Conflict(SamewireError):
    """A valid request that clashes with present state."""


class Exhausted(SamewireError):
    """A bounded resource (address range, flow table, NAT pool) has no room left."""

    def __init__(self, resource: str, message: str) -> None:
        super().__init__(f"{resource}: {message}")
        self.resource = resource


class Unsupported(SamewireError):
    """A feature that this kernel or build lacks; ``needs`` says what would have it."""

    def __init__(self, feature: str, needs: str) -> None:
        super().__init__(f"{feature} is not supported here; it needs {needs}")
        self.feature = feature
        self.needs = needs


class Unavailable(SamewireError):
    """A service we depend on does not answer now; the caller may try again."""

    def __init__(self, service: str, message: str) -> None:
        super().__init__(f"{service} is unavailable: {message}")
        self.service = service


class KernelError(SamewireError):
    """A system call, netlink request or BPF command that the kernel refused.

    ``operation`` is what was asked for in words (``"create veth swa1"``), ``errno`` the positive error number,
    ``detail`` the kernel's own text (netlink extended ack, verifier log) where there is one.
    """

    def __init__(self, operation: str, errno: int, detail: str = "") -> None:
        name = _errno.errorcode.get(errno, str(errno))
        text = f"{operation}: {name} ({os.strerror(errno)})"
        super().__init__(f"{text}: {detail}" if detail else text)
        self.operation = operation
        self.errno = errno
        self.detail = detail


def there(value: T | None, what: str, name: str) -> T:
    """Return what a look-up has found. Raises NotFound."""
    if value is None:
        raise NotFound(what, name)
    return value
