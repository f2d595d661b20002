"""What a Kubernetes API server answers when it says no."""

from __future__ import annotations

from typing import Final

from samewire.errors import SamewireError

GONE: Final = 410
TOO_MANY_REQUESTS: Final = 429
UNAUTHORIZED: Final = 401


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
    def expired(self) -> bool:
        """Whether the resource version or continue token is too old: list again."""
        return self.status == GONE or self.reason in ("Expired", "Gone")

    @property
    def throttled(self) -> bool:
        """Whether the server asks for patience."""
        return self.status == TOO_MANY_REQUESTS
