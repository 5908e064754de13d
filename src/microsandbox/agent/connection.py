"""A connection to a sandbox's relay: handshake, correlation ids, sessions with flow control.

One socket carries many sessions. A session whose consumer is slow asks the guest to pause it
(``core.flow``) instead of letting its queue grow or stopping the socket, so the other sessions of this
connection go on. What is in flight when the pause is asked for still arrives; that is bounded by the
guest's output buffer.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microsandbox.agent.protocol import (
    GENERATION,
    MAX_LENGTH,
    MIN_LENGTH,
    Frame,
    FrameSplitter,
    Message,
    MessageType,
    ProtocolError,
    Refusal,
    decode,
    decode_envelope,
    encode,
    since,
    text,
)
from microsandbox.errors import (
    AgentClientError,
    AgentUnresponsiveError,
    RuntimeTooOldError,
    SandboxPausedError,
)

DEFAULT_TIMEOUT = 10.0
#: Undelivered bytes of one session: above the first the guest is asked to pause it, below the second it
#: goes on. A guest that ignores the request for as long as the third loses the connection.
QUEUE_HIGH, QUEUE_LOW, QUEUE_LIMIT = 1 << 20, 256 << 10, 32 << 20
_WRITE_HIGH = 1 << 20
_MAX_FLOW_FRAME = 64
_CLOSED = "client closed"
_RANGE = struct.Struct(">II")
_LEGACY_STEP = (2**32 - 1) // 16

log = logging.getLogger(__name__)


class Session:
    """The frames of one correlation id, until one with the TERMINAL flag. One consumer at a time."""

    def __init__(self, connection: Connection, id: int) -> None:
        self.id = id
        self._connection = connection
        self._frames: deque[Frame] = deque()
        self._queued = 0
        self._paused = False
        self._ended = False
        self._arrived = asyncio.Event()
        self._may_send = asyncio.Event()
        self._may_send.set()

    async def next_frame(self) -> Frame | None:
        """The next frame; None after the terminal one. Raises AgentClientError when the connection breaks."""
        while not self._frames:
            if self._ended:
                return None
            self._connection.check_open(self.id)
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        self._queued -= len(frame.raw)
        if self._paused and self._queued <= QUEUE_LOW:
            self._set_paused(False)
        return frame

    async def next_message(self) -> Message | None:
        """As next_frame(), decoded. What cannot be understood is skipped: newer peers may add types.

        Raises SandboxPausedError when the relay refused the session for that reason, AgentUnresponsiveError
        when the agent hangs.
        """
        while (frame := await self.next_frame()) is not None:
            try:
                message = decode(frame.body)
            except ProtocolError as error:
                log.debug("a frame of session %d was skipped: %s", self.id, error)
                continue
            if message.kind is MessageType.ERROR:
                _raise_refusal(message)
            return message
        return None

    async def send(self, kind: MessageType, payload: Mapping[str, Any] | None = None) -> None:
        """Send a message at once, whatever the guest's queue for this session.

        Raises RuntimeTooOldError for one that the sandbox's runtime does not know yet, AgentClientError.
        """
        self._connection.check_supports(kind)
        await self._connection.send(encode(self.id, kind, payload))

    async def send_data(self, kind: MessageType, data: bytes) -> None:
        """Send a data message, waiting while the guest asks this session to pause."""
        while not self._may_send.is_set():
            self._connection.check_open(self.id)
            await self._may_send.wait()
        await self.send(kind, {"data": data})

    def close(self) -> None:
        """Forget the session: later frames of its id are dropped."""
        self._connection.forget(self)

    @property
    def ended(self) -> bool:
        return self._ended

    def deliver(self, frame: Frame) -> None:
        """Called by the connection for each frame of this session. Raises ProtocolError."""
        if _is_flow(frame):
            self._follow_flow(frame)
            return
        self._frames.append(frame)
        self._queued += len(frame.raw)
        if self._queued > QUEUE_LIMIT:
            raise ProtocolError(f"session {self.id} does not stop when asked to pause")
        if frame.flags & 1:
            self._ended = True
            self._may_send.set()
        elif not self._paused and self._queued > QUEUE_HIGH:
            self._set_paused(True)
        self._arrived.set()

    def wake(self) -> None:
        """Called by the connection when it breaks."""
        self._arrived.set()
        self._may_send.set()

    def _follow_flow(self, frame: Frame) -> None:
        try:
            paused = decode(frame.body).payload.get("paused")
        except ProtocolError:
            return
        if paused is True:
            self._may_send.clear()
        else:
            self._may_send.set()

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused
        if "flow" in self._connection.features and not self._ended:
            self._connection.send_soon(encode(self.id, MessageType.FLOW, {"paused": paused}))


def _raise_refusal(message: Message) -> None:
    """Raise what a core.error of the relay means; others are the caller's."""
    kind, said = message.payload.get("kind"), text(message.payload, "message")
    if kind == Refusal.PAUSED:
        raise SandboxPausedError(said or "the sandbox is paused")
    if kind == Refusal.UNRESPONSIVE:
        raise AgentUnresponsiveError(said or "the agent does not answer")
    if kind == Refusal.LOST:
        raise AgentClientError(said or "the agent has ended")


def _is_flow(frame: Frame) -> bool:
    """Whether it is a core.flow message; others are decoded by who takes them, not here."""
    if frame.flags or len(frame.raw) > _MAX_FLOW_FRAME or MessageType.FLOW.value.encode() not in frame.raw:
        return False
    return decode_envelope(frame.body)[0] == MessageType.FLOW.value


class Connection(asyncio.Protocol):
    """A client's side of one relay connection. Use ``await Connection.open(path)``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._splitter = FrameSplitter()
        self._handshake = bytearray()
        self._ready: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()
        self._failure: str | None = None
        self._sessions: dict[int, Session] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._first, self._end, self._next = 1, 2, 1
        #: That the other side has announced.
        self.features: frozenset[str] = frozenset()
        #: Of the protocol, as far as both sides know it.
        self.generation = GENERATION
        #: Whether the relay is of a release before 0.5, which deals out ids in another way.
        self.legacy = False
        self.agent_version: str | None = None

    @classmethod
    async def open(cls, path: Path, *, timeout: float | None = DEFAULT_TIMEOUT) -> Connection:
        """Connect and shake hands within ``timeout`` seconds (None: no limit). Raises AgentClientError."""
        loop = asyncio.get_running_loop()
        try:
            transport, connection = await loop.create_unix_connection(lambda: cls(path), str(path))
        except OSError as error:
            raise AgentClientError(f"connect {path}: {error.strerror} (os error {error.errno})") from error
        try:
            async with asyncio.timeout(timeout):  # wait_for() of Python 3.11 may swallow a cancellation
                await asyncio.shield(connection._ready)
        except TimeoutError:
            transport.abort()
            detail = "read ready frame: timed out before relay sent frame"
            if len(connection._handshake) < _RANGE.size:
                detail = "read id range: timed out before relay sent bytes"
            raise AgentClientError(f"handshake: {detail}") from None
        except BaseException:
            transport.abort()
            raise
        return connection

    @property
    def ready(self) -> Frame:
        """The ``core.ready`` frame of the handshake."""
        return self._ready.result()

    def start_session(self) -> Session:
        """Allocate a correlation id; the caller sends the first frame. Raises AgentClientError."""
        self.check_open(0)
        for _ in range(len(self._sessions) + 1):
            id = self._next
            self._next = id + 1 if id + 1 < self._end else self._first
            if id not in self._sessions:
                session = self._sessions[id] = Session(self, id)
                return session
        raise AgentClientError("agent correlation id range exhausted")

    async def open_session(self, kind: MessageType, payload: Mapping[str, Any]) -> Session:
        """Start a session with its request."""
        session = self.start_session()
        try:
            await session.send(kind, payload)
        except BaseException:
            session.close()
            raise
        return session

    async def send(self, frame: Frame) -> None:
        """Send one frame, waiting while the socket is full. Raises AgentClientError."""
        self.send_soon(frame)
        while not self._writable.is_set():
            await self._writable.wait()
            self.check_open(frame.id)

    def check_supports(self, name: str) -> None:
        """Raises RuntimeTooOldError when the other side does not know that type of message."""
        if since(name) > self.generation:
            raise RuntimeTooOldError(name, since(name), self.generation)

    def send_soon(self, frame: Frame) -> None:
        self.check_open(frame.id)
        self._transport.write(frame.raw)

    def forget(self, session: Session) -> None:
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]

    def check_open(self, id: int) -> None:
        """Raises AgentClientError when the connection is gone."""
        if self._failure is not None:
            detail = self._failure
            raise AgentClientError(
                detail if id == 0 or detail == "client closed" else f"{detail} for id={id}"
            )

    def close(self) -> None:
        """Close at once; idempotent. The relay ends every session that was opened through it."""
        self._fail(_CLOSED)
        self._transport.abort()

    def finish(self) -> None:
        """Close once everything written has been sent."""
        self._transport.close()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def _fail(self, detail: str) -> None:
        if self._failure is None:
            self._failure = detail
            for session in self._sessions.values():
                session.wake()
            self._writable.set()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_HIGH)

    def data_received(self, data: bytes) -> None:
        try:
            if not self._ready.done() and len(self._handshake) < _RANGE.size:
                missing = _RANGE.size - len(self._handshake)
                self._handshake += data[:missing]
                data = data[missing:]
                if len(self._handshake) == _RANGE.size:
                    data = self._take_range() + data
            for frame in self._splitter.feed(data):
                self._dispatch(frame)
        except ProtocolError as error:
            self._break(str(error) if not self._ready.done() else f"protocol: {error}")

    def _take_range(self) -> bytes:
        """Our ids; and what of the handshake belongs to the frame that follows. Raises ProtocolError."""
        start, end = _RANGE.unpack(self._handshake)
        # Relays of before 0.5 send an offset only; what seems to be the end is a frame's length then.
        self.legacy = MIN_LENGTH <= end <= MAX_LENGTH and (start == 0 or start >= end)
        if self.legacy:
            start, end = start + 1, min(start + 1 + _LEGACY_STEP, 2**32)
        if end <= start:
            raise ProtocolError(f"invalid relay id range: start={start}, end={end}")
        if end - max(start, 1) < 1:
            raise ProtocolError(f"relay id range contains no usable nonzero ids: {start}..{end}")
        self._first, self._end = max(start, 1), end
        self._next = self._first
        return bytes(self._handshake[4:]) if self.legacy else b""

    def _dispatch(self, frame: Frame) -> None:
        if not self._ready.done():
            name, _, generation = decode_envelope(frame.body)
            if name != MessageType.READY:
                raise ProtocolError(f"expected core.ready frame, got {name[:64]}")
            ready = decode(frame.body)
            self.generation = min(GENERATION, generation)
            self.agent_version = text(ready.payload, "agent_version", 64)
            features = ready.payload.get("features")
            if isinstance(features, list):
                self.features = frozenset(feature for feature in features if isinstance(feature, str))
            self._ready.set_result(frame)
            return
        session = self._sessions.get(frame.id)
        if session is not None:
            session.deliver(frame)
            if frame.flags & 1:
                self.forget(session)

    def _break(self, detail: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(AgentClientError(f"handshake: {detail}"))
        self._fail(detail)
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ready.done():
            reason = f"io: {error}" if error else "relay closed the connection before the handshake"
            self._ready.set_exception(AgentClientError(f"handshake: {reason}"))
            self._ready.exception()  # nobody may be waiting any more
        self._fail("reader closed before response")
        self._closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
