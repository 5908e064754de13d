"""The raw agent client: frames in, frames out, for those who speak the protocol themselves."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self, TypedDict

from microsandbox.agent.connection import DEFAULT_TIMEOUT, Connection, Session
from microsandbox.agent.protocol import Flag, Frame, ProtocolError, understood
from microsandbox.errors import AgentClientError

FLAG_TERMINAL = int(Flag.TERMINAL)
FLAG_SESSION_START = int(Flag.SESSION_START)
FLAG_SHUTDOWN = int(Flag.SHUTDOWN)


class RawFrame(TypedDict):
    """One frame: ``body`` is the whole CBOR message ``{v, t, p}``."""

    id: int
    flags: int
    body: bytes


def _raw(frame: Frame) -> RawFrame:
    return {"id": frame.id, "flags": frame.flags, "body": frame.body}


def _frame(id: int, flags: int, body: bytes) -> Frame:
    if not 0 <= id < 2**32 or not 0 <= flags < 2**8:
        raise OverflowError("out of range integral type conversion attempted")
    try:
        return Frame.build(id, flags, bytes(body))
    except ProtocolError as error:
        raise AgentClientError(f"protocol: {error}") from error


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not (math.isfinite(timeout) and timeout >= 0):
        raise ValueError("timeout must be a non-negative finite number")


class AgentStream:
    """The frames of one session: an async iterator and context manager."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._closed = False

    @property
    def id(self) -> int:
        return self._session.id

    async def next(self) -> RawFrame | None:
        """The next frame; None after the one with FLAG_TERMINAL, at end of stream, and after close()."""
        if self._closed:
            return None
        try:
            frame = await self._session.next_frame()
        except AgentClientError:
            return None
        return None if frame is None else _raw(frame)

    async def close(self) -> None:
        """Stop listening; idempotent. The guest's side of the session goes on until the client closes."""
        self._closed = True
        self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[RawFrame]:
        while (frame := await self.next()) is not None:
            yield frame


class AgentClient:
    """A connection to one sandbox's agent. Make it with connect_sandbox() or connect()."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def connect_sandbox(cls, name: str, *, timeout: float | None = None) -> AgentClient:
        """Connect to a running sandbox; ``timeout`` in seconds, default 10.

        Raises AgentClientError, InvalidConfigError for a home or config.json that cannot be used.
        """
        _check_timeout(timeout)
        from microsandbox.errors import InvalidConfigError
        from microsandbox.store.home import Home, validate_name

        try:
            validate_name(name)
        except InvalidConfigError as error:
            raise AgentClientError(f"invalid sandbox name: {name} ({error.detail})") from error
        for path in Home.open().agent_socket_candidates(name):
            if path.exists():
                return await cls.connect(path, timeout=timeout)
        raise AgentClientError(f"sandbox '{name}' not found")

    @classmethod
    async def connect(cls, path: str | Path, *, timeout: float | None = None) -> AgentClient:
        """Connect to a relay socket. Raises AgentClientError, ValueError for a bad timeout."""
        _check_timeout(timeout)
        limit = DEFAULT_TIMEOUT if timeout is None else timeout
        return cls(await Connection.open(Path(path), timeout=limit))

    async def request(self, flags: int, body: bytes) -> RawFrame:
        """Send one frame under a new id and return the first frame that answers it."""
        stream = await self.stream(flags, body)
        try:
            frame = await stream._session.next_frame()
        finally:
            await stream.close()
        if frame is None:
            raise AgentClientError(f"reader closed before response for id={stream.id}")
        return _raw(frame)

    async def stream(self, flags: int, body: bytes) -> AgentStream:
        """Open a session with its first frame."""
        session = self._connection.start_session()
        try:
            await self._connection.send(_frame(session.id, flags, body))
        except BaseException:
            session.close()
            raise
        return AgentStream(session)

    async def send(self, id: int, flags: int, body: bytes) -> None:
        """Send a follow-up frame."""
        self._connection.check_open(0)
        await self._connection.send(_frame(id, flags, body))

    def ready_bytes(self) -> bytes:
        """The CBOR message of the agent's ``core.ready``."""
        self._connection.check_open(0)
        return self._connection.ready.body

    def negotiated_version(self) -> int:
        """The generation of the protocol that both sides speak."""
        self._connection.check_open(0)
        return self._connection.generation

    def agent_version(self) -> str | None:
        """The release of the guest's agent, if it says so."""
        self._connection.check_open(0)
        return self._connection.agent_version

    def supports(self, message_type: str) -> bool:
        """Whether the sandbox's runtime knows such a message, ``core.fs.request`` for example.

        Messages that microsandbox 0.5.6 does not have are known to runtimes that announce them.
        """
        self._connection.check_open(0)
        return understood(message_type, self._connection.generation, self._connection.features)

    def is_legacy_protocol(self) -> bool:
        """Whether the sandbox was started by a release before 0.5."""
        self._connection.check_open(0)
        return self._connection.legacy

    async def close(self) -> None:
        """Idempotent. The commands that were started through this client are killed."""
        self._connection.close()
