"""What a Kubernetes API server answers when it says no."""

from __future__ import annotations

from typing import Final

from samewire.errors import SamewireError

GONE: Final = 410
TOO_MANY_REQUESTS: Final = 429
UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404

_ADVICE: Final = {
    UNAUTHORIZED: "the server does not accept these credentials",
    FORBIDDEN: "grant list and watch on it",
    NOT_FOUND: "this server does not have that API; discovery.k8s.io/v1 needs Kubernetes 1.21",
}


class ApiError(SamewireError):
    """An answer other than success.

    ``status`` is the HTTP status, ``reason`` the API's word for it ("Forbidden", "Expired", may be empty),
    ``retry_after_s`` what the server asked for, None if it did not.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"Kubernetes API: {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def advice(self) -> str:
        """What a person has to do before it can work; empty for what passes by itself."""
        return _ADVICE.get(self.status, "")

    @property
    def expired(self) -> bool:
        """Whether the resource version or continue token is too old: list again."""
        return self.status == GONE or self.reason in ("Expired", "Gone")

    @property
    def throttled(self) -> bool:
        """Whether the server asks for patience."""
        return self.status == TOO_MANY_REQUESTS
