"""HTTP to an API server: single requests and streams, every failure as one of our errors."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from samewire.errors import Unavailable
from samewire.kube.access import Access, TlsContexts
from samewire.kube.auth import Credential
from samewire.kube.errors import UNAUTHORIZED, ApiError
from samewire.kube.resolver import Resolver

_SERVICE: Final = "Kubernetes API"
_USER_AGENT: Final = "samewire"
_READ_BYTES: Final = 1 << 18
_ERROR_BYTES: Final = 1 << 16
_ANSWER_BYTES: Final = 256 << 20
# The server's name, the connection, a proxy's answer, TLS: all together may take so many times what one may.
_CONNECT_STEPS: Final = 3
# And all of an answer so many times what the server may be silent: some megabytes over a slow line.
_ANSWER_STEPS: Final = 5

# A connection whose other end is gone without a word is given up after about 30 s, however quiet it is.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class ApiStatus(Struct, frozen=True):
    """meta/v1 Status: the body of refusals and of ERROR events."""

    code: int = 0
    reason: str = ""
    message: str = ""


class Stream:
    """The body of an answer, as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse, server: str) -> None:
        self._response = response
        self._server = server

    async def chunks(self) -> AsyncIterator[bytes]:
        """Pieces of the body, until its end. Raises ``Unavailable`` when nothing comes for too long or it breaks."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except TimeoutError:
            raise Stalled(_SERVICE, f"{self._server} sent nothing for too long") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(_SERVICE, f"{self._server}: {_words(error)}") from error


class Stalled(Unavailable):
    """The server keeps the connection and says nothing."""


class TooLarge(Unavailable):
    """The answer is more than we take at once."""


class KubeClient:
    """One API server. Create it and close it in one event loop."""

    def __init__(
        self, access: Access, *, connect_timeout_s: float = 10.0, answer_timeout_s: float = 60.0
    ) -> None:
        self.access = access
        self._tls = TlsContexts(access)
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request; the body of its answer. Raises ``ApiError``, ``Unavailable`` (``TooLarge``), ``Invalid``
        (credentials).

        ``body`` is encoded as JSON unless it is bytes.
        """
        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        headers = {} if data is None else {"Content-Type": content_type}
        timeout_s = self._answer_timeout_s
        try:
            async with (
                asyncio.timeout(_ANSWER_STEPS * timeout_s),  # a byte now and then is no progress
                self._answer(method, path, params or {}, timeout_s, headers, data) as response,
            ):
                return await self._whole(response, path)
        except TimeoutError:
            raise Stalled(_SERVICE, f"{self.access.server} does not come to the end of {path}") from None

    async def _whole(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        parts, size = [], 0
        async for chunk in Stream(response, self.access.server).chunks():
            parts.append(chunk)
            size += len(chunk)
            if size > _ANSWER_BYTES:
                raise TooLarge(_SERVICE, f"{path}: the answer is larger than {_ANSWER_BYTES >> 20} MiB")
        return b"".join(parts)

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], silence_timeout_s: float
    ) -> AsyncIterator[Stream]:
        """A GET whose answer is read as it arrives; ends with ``Stalled`` after ``silence_timeout_s`` without data."""
        async with self._answer("GET", path, params, silence_timeout_s) as response:
            _keep_alive(response)
            yield Stream(response, self.access.server)

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        silence_timeout_s: float,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer; asks once more with a new credential after a 401."""
        for attempt in (1, 2):
            credential = await self.access.credentials.get()
            response = await self._send(
                method, path, params=params, data=data, headers=self._headers(credential, headers or {}),
                # For plain HTTP it says nothing; False would be not to look at certificates.
                ssl=self._tls.get(credential) or True,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=_CONNECT_STEPS * self._connect_timeout_s,
                    sock_connect=self._connect_timeout_s, sock_read=silence_timeout_s,
                ),
            )  # fmt: skip
            async with response:
                if response.status < 300:
                    yield response
                    return
                refusal = await _refusal(response)
            if (
                response.status != UNAUTHORIZED
                or attempt == 2
                or not self.access.credentials.reject(credential)
            ):
                raise refusal

    def _headers(self, credential: Credential, more: Mapping[str, str]) -> list[tuple[str, str]]:
        headers = [*more.items(), *self.access.impersonation]
        if credential.token:
            headers.append(("Authorization", f"Bearer {credential.token}"))
        return headers

    async def _send(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        access = self.access
        try:
            return await self._get_session().request(
                method,
                access.server + path,
                allow_redirects=False,
                server_hostname=access.server_name or None,
                proxy=access.proxy or None,
                **options,
            )
        except TimeoutError:
            raise Stalled(_SERVICE, f"{access.server} does not answer") from None
        # A header with characters that may not be in one is a ValueError.
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(_SERVICE, f"{access.server}: {_words(error)}") from error

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, resolver=Resolver()),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_READ_BYTES,
                trust_env=False,
                # Compressing costs both sides more time than it saves on a cluster's network.
                headers={
                    "User-Agent": _USER_AGENT,
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
            )
        return self._session


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Let the kernel find out whether the server is still there while a watch is quiet."""
    connection = response.connection
    transport = connection.transport if connection is not None else None
    found = transport.get_extra_info("socket") if transport is not None else None
    if found is not None:
        for level, option, value in _KEEPALIVE:
            found.setsockopt(level, option, value)


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    text = b""
    try:
        async for chunk in response.content.iter_any():
            text += chunk
            if len(text) > _ERROR_BYTES:
                break
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass  # the status has to do, with what has come of the text
    try:
        status = msgspec.json.decode(text, type=ApiStatus)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        status = ApiStatus(message=text[:200].decode(errors="replace").strip())
    message = status.message or "no reason given"
    where = response.headers.get("Location")
    if where and response.status < 400:
        message = f"it redirects to {where[:200]}, and redirects are not followed"
    return ApiError(
        response.status,
        status.reason or response.reason or "",
        message,
        _retry_after(response.headers),
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header: a number, as API servers send it, or a date, as a proxy before them may, which
    is by the clock of who has sent it.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    until_s, now_s = (_moment_s(found) for found in (text, headers.get("Date", "")))
    return None if until_s is None else max(0.0, until_s - (time.time() if now_s is None else now_s))


def _moment_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _words(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke in the middle of an answer"
    if isinstance(error, aiohttp.ClientConnectorError):
        # Its own words name the TLS context by where it lies in memory.
        return f"cannot connect to {error.host}:{error.port}: {_reason(error.os_error)}"
    if isinstance(error, aiohttp.ClientResponseError):
        # Its own words have the URL, and a proxy's may have a password.
        proxy = isinstance(error, aiohttp.ClientHttpProxyError)
        return f"the proxy answers {error.status} {error.message}" if proxy else error.message
    return str(error) or type(error).__name__


def _reason(error: OSError) -> str:
    """What the kernel says; TLS and name resolution have numbers and words of their own."""
    if isinstance(error, ConnectionError | TimeoutError) and error.errno:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__
