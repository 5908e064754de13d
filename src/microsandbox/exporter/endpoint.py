"""The HTTP server that Prometheus scrapes: one page, one request a connection, everything bounded.

Not http.server: its threads, keep-alive and header parser are much to bound for so little.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

PATH = "/metrics"
_MOST_CONNECTIONS = 32
#: Bytes of a request's line and headers; a body is not read.
_MOST_REQUEST = 16 << 10
#: Seconds for a connection, from its beginning to the last byte of the answer.
_TIME = 10.0
_PLAIN = "text/plain; charset=utf-8"


class Unavailable(Exception):
    """There is no page at the moment; the text says why."""


class Endpoint:
    """Serves a page while it is entered. ``page`` returns its text, or raises Unavailable."""

    def __init__(self, address: tuple[str, int], page: Callable[[], str], content_type: str) -> None:
        self._address, self._page, self._content_type = address, page, content_type
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"

    async def __aenter__(self) -> Self:
        """Raises OSError when the address cannot be had."""
        host, port = self._address
        self._server = await asyncio.start_server(self._connected, host, port, limit=_MOST_REQUEST)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            log.warning("refused a connection: %d are open", _MOST_CONNECTIONS)
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            async with asyncio.timeout(_TIME):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a connection ended early: %r", error)
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        match head.split(b"\r\n", 1)[0].split(b" "):
            case [b"GET" | b"HEAD" as method, target, b"HTTP/1.0" | b"HTTP/1.1"]:
                response = self._get(target)
                return response if method == b"GET" else response[: response.index(b"\r\n\r\n") + 4]
            case [_, _, b"HTTP/1.0" | b"HTTP/1.1"]:
                return _response(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD")
        return _response(HTTPStatus.BAD_REQUEST)

    def _get(self, target: bytes) -> bytes:
        if target.partition(b"?")[0] != PATH.encode():
            return _response(HTTPStatus.NOT_FOUND, f"metrics are at {PATH}\n")
        try:
            return _response(HTTPStatus.OK, self._page(), self._content_type)
        except Unavailable as error:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")


def _response(status: HTTPStatus, text: str = "", content_type: str = _PLAIN, allow: str = "") -> bytes:
    body = (text or f"{status.phrase}\n").encode("utf-8", "backslashreplace")
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *([f"Allow: {allow}"] if allow else []),
    ]
    return "\r\n".join((*head, "", "")).encode() + body
