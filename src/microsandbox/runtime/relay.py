"""The relay: many clients of one Unix socket share the guest's single agent port.

    client ──┐                               correlation ids are dealt out in ranges, one per client,
    client ──┼── relay ── GuestLink ── agentd    so a frame's id says whose it is
    client ──┘

Frames are forwarded unchanged; the log of what commands print sees them pass by. A client that reads too
slowly has its sessions paused in the guest (``core.flow``); one that breaks the protocol, or whose backlog
grows all the same, is disconnected. The others never wait for it. While the machine is paused, what is meant
for the guest waits at the gate.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import struct
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any

from microsandbox.agent.protocol import (
    CLIENT_TYPES,
    MACHINE_REQUESTS,
    Flag,
    Frame,
    FrameSplitter,
    MessageType,
    ProtocolError,
    Refusal,
    decode,
    decode_envelope,
    encode,
    flags_of,
)
from microsandbox.runtime.exec_log import ExecLog
from microsandbox.runtime.gate import Gate, Passage
from microsandbox.runtime.guest_link import GuestLink

MAX_CLIENTS = 128
ID_STEP = (2**32 - 1) // MAX_CLIENTS
#: Bytes waiting for one client: above the first its sessions are paused, below the second they go on,
#: above the third it is disconnected (its guest ignores the pause).
CLIENT_HIGH, CLIENT_LOW, CLIENT_LIMIT = 1 << 20, 256 << 10, 16 << 20

#: Answers a request about the machine with a message.
Reply = Callable[[MessageType, Mapping[str, Any]], None]
_PAUSED = "the sandbox is paused; resume it first"
_RANGE = struct.Struct(">II")
log = logging.getLogger(__name__)


class SessionKind(Enum):
    EXEC = auto()
    OTHER = auto()


class _Client(asyncio.Protocol):
    """One connection. Its slot decides its range of ids."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._splitter = FrameSplitter()
        self.sessions: dict[int, SessionKind] = {}
        self.held: set[int] = set()  # sessions that the client itself asked to pause
        self.paused = False
        self.asking = False  # about the machine; the answer is still to come
        self.slot = -1

    @property
    def first_id(self) -> int:
        return self.slot * ID_STEP + 1

    @property
    def end_id(self) -> int:
        return (self.slot + 1) * ID_STEP

    def forward(self, frame: Frame) -> None:
        """A frame of the guest for this client."""
        self._transport.write(frame.raw)
        if frame.flags & Flag.TERMINAL:
            self.end_session(frame.id)
        if self._transport.get_write_buffer_size() > CLIENT_LIMIT:
            self.disconnect("it does not read and the guest does not pause")

    def end_session(self, id: int) -> None:
        if self.sessions.pop(id, None) is SessionKind.EXEC:
            self._relay.exec_log.end(id)
        self.held.discard(id)

    def answer(self, id: int, kind: MessageType, payload: Mapping[str, Any]) -> None:
        """A message of our own, unless the client has left meanwhile."""
        self.asking = False
        if not self._transport.is_closing():
            self.forward(encode(id, kind, payload))

    def update_reading(self) -> None:
        if self._transport.is_closing():
            return
        if self._relay.gate.takes(self):
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def disconnect(self, reason: str) -> None:
        if not self._transport.is_closing():
            log.warning("client %d disconnected: %s", self.slot, reason)
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=CLIENT_HIGH, low=CLIENT_LOW)
        ready = self._relay.admit(self)
        if ready is None:
            transport.abort()
        else:
            transport.write(_RANGE.pack(self.first_id, self.end_id) + ready.raw)
            self.update_reading()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._splitter.feed(data):
                self._relay.from_client(self, frame)
        except ProtocolError as error:
            self.disconnect(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.dismiss(self)

    def pause_writing(self) -> None:
        self._pause(True)

    def resume_writing(self) -> None:
        self._pause(False)

    def _pause(self, paused: bool) -> None:
        self.paused = paused
        for id in self.sessions.keys() - self.held:
            self._relay.pause_session(self, id, paused)


class Relay:
    """Routes frames between clients and the guest. Serves once ``serve`` was called with ``core.ready``."""

    def __init__(self, guest: GuestLink, on_shutdown: Callable[[], None], exec_log: ExecLog) -> None:
        self._guest = guest
        self.exec_log = exec_log
        self.gate = Gate(guest)
        #: Takes requests about the machine: what is asked, and how to answer.
        self.on_machine_request: Callable[[MessageType, Reply], None] = lambda _kind, _reply: None
        self._on_shutdown = on_shutdown
        self._clients: dict[int, _Client] = {}
        self._next_slot = 0
        self._ready: Frame | None = None
        self._server: asyncio.Server | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        #: Set while anybody waits for the guest, or has left before it said anything; since when, and when it
        #: said something, as time.monotonic().
        self.awaited = asyncio.Event()
        self.awaited_since = self.last_heard = 0.0
        #: Called for each frame of the guest.
        self.on_heard: Callable[[], None] = lambda: None
        #: Set by the first client.
        self.visited = asyncio.Event()
        self.last_activity = time.monotonic()

    async def serve(self, listener: socket.socket, ready: Frame) -> None:
        """Accept clients on a listening Unix socket; those that already wait in its backlog come first."""
        self._ready = _announcing_machine(ready)
        self.last_activity = time.monotonic()
        self._guest.deliver_to(self._from_guest)
        self._guest.on_writable = lambda _: self.update_reading()
        loop = asyncio.get_running_loop()
        # A shorter queue is asyncio's default; and it takes for connected whom a full one refuses.
        self._server = await loop.create_unix_server(
            lambda: _Client(self), sock=listener, backlog=socket.SOMAXCONN
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in list(self._clients.values()):
            client.disconnect("the sandbox has ended")

    def give_up(self, kind: Refusal, message: str) -> None:
        """Tell everybody who waits for the guest that no answer will come."""
        told = {"kind": kind.value, "message": message}
        for client in self._clients.values():
            for id in list(client.sessions):
                client.forward(encode(id, MessageType.ERROR, told))
        self._update_idle()

    def update_reading(self) -> None:
        """Read the clients whose words can go somewhere, and not the others."""
        for client in self._clients.values():
            client.update_reading()

    @property
    def exec_sessions(self) -> int:
        """Commands that are running."""
        return sum(
            kind is SessionKind.EXEC for client in self._clients.values() for kind in client.sessions.values()
        )

    async def drain(self) -> None:
        """Refuse new sessions and return when the running ones have ended."""
        self._draining = True
        await self._idle.wait()

    # a machine that is paused

    def hold(self, passage: Passage) -> None:
        """Let nothing through to the guest any more; ``passage`` says what becomes of it."""
        self.gate.passage = passage
        self.update_reading()

    def let_pass(self) -> None:
        """The opposite of hold()."""
        self.gate.open()
        self.update_reading()

    # clients

    def admit(self, client: _Client) -> Frame | None:
        """Give the client a slot; None when all are taken.

        Slots are handed out in turn: what the guest still sends for a client that has just left must not
        reach the one that follows it.
        """
        for offset in range(MAX_CLIENTS):
            slot = (self._next_slot + offset) % MAX_CLIENTS
            if slot not in self._clients:
                client.slot = slot
                self._clients[slot] = client
                self._next_slot = (slot + 1) % MAX_CLIENTS
                self.visited.set()
                return self._ready
        log.warning("a client was turned away: all %d places are taken", MAX_CLIENTS)
        return None

    def dismiss(self, client: _Client) -> None:
        """End everything the client started in the guest."""
        if self._clients.get(client.slot) is not client:
            return
        del self._clients[client.slot]
        if self.gate.forget(client):
            self._tell_of_leaving(client)
        for id in list(client.sessions):
            client.end_session(id)
        self._update_idle()

    def _tell_of_leaving(self, client: _Client) -> None:
        for id, kind in client.sessions.items():
            if kind is SessionKind.EXEC:
                self._guest.send(encode(id, MessageType.EXEC_SIGNAL, {"signal": 9}))
        ids = {"id_start": client.first_id, "id_end_exclusive": client.end_id}
        self._guest.send_message(MessageType.CLIENT_DISCONNECTED, ids)

    def from_client(self, client: _Client, frame: Frame) -> None:
        """Check a client's frame and pass it on. Raises ProtocolError."""
        self.last_activity = time.monotonic()
        if frame.id == 0 and frame.flags == Flag.SHUTDOWN:
            self._on_shutdown()
            return
        if not client.first_id <= frame.id < client.end_id:
            raise ProtocolError(f"frame id {frame.id} is not one of this client's")
        name, _, _ = decode_envelope(frame.body)
        refusal = self._refusal(name, frame)
        if refusal is not None:
            client.forward(encode(frame.id, MessageType.ERROR, {**refusal, "offending_type": name[:64]}))
            return
        kind = MessageType(name)
        if kind is MessageType.SHUTDOWN:
            self._on_shutdown()
            return
        if kind in MACHINE_REQUESTS:
            self._ask_about_machine(client, frame.id, kind)
            return
        if kind is MessageType.FLOW:
            self._hold_session(client, frame)
            return
        if frame.flags & Flag.SESSION_START:
            self._start_session(client, frame, kind)
        self._to_guest(client, frame)
        if client.paused and frame.flags & Flag.SESSION_START:
            self.pause_session(client, frame.id, True)
        if kind is MessageType.TCP_CLOSE:
            client.end_session(frame.id)
            self._update_idle()

    def _ask_about_machine(self, client: _Client, id: int, kind: MessageType) -> None:
        if client.asking:
            raise ProtocolError("one request about the machine at a time")
        client.asking = True
        self.on_machine_request(kind, functools.partial(client.answer, id))

    def _hold_session(self, client: _Client, frame: Frame) -> None:
        """A client's own wish to pause a session, beside ours: it goes on when neither holds it."""
        paused = decode(frame.body).payload.get("paused") is True
        if frame.id not in client.sessions or paused == (frame.id in client.held):
            return
        if paused:
            client.held.add(frame.id)
        else:
            client.held.discard(frame.id)
        if not client.paused:
            self.pause_session(client, frame.id, paused)

    def _refusal(self, name: str, frame: Frame) -> dict[str, str] | None:
        """Why a client's frame is answered with core.error, if it is. Raises ProtocolError."""
        try:
            kind = MessageType(name)
        except ValueError:
            return {"kind": "unsupported_message_type", "message": f"unsupported message type {name[:64]}"}
        if kind not in CLIENT_TYPES:
            raise ProtocolError(f"clients may not send {name}")
        expected = flags_of(kind)
        if frame.flags != expected:
            message = f"invalid flags for {name}: got {frame.flags}, expected {int(expected)}"
            return {"kind": "invalid_flags", "message": message}
        if kind in MACHINE_REQUESTS or not expected & Flag.SESSION_START:
            return None
        if self._draining:
            return {"kind": "invalid_session", "message": "the sandbox is draining: no new sessions"}
        if self._guest.lost.done():
            return {"kind": Refusal.LOST.value, "message": self._guest.lost.result()}
        if self.gate.passage is Passage.SHUT:
            return {"kind": Refusal.PAUSED.value, "message": _PAUSED}
        return None

    def _start_session(self, client: _Client, frame: Frame, kind: MessageType) -> None:
        if frame.id in client.sessions:
            raise ProtocolError(f"session id {frame.id} is in use")
        if kind is MessageType.EXEC_REQUEST:
            self.exec_log.begin(frame.id, decode(frame.body).payload)
            client.sessions[frame.id] = SessionKind.EXEC
        else:
            client.sessions[frame.id] = SessionKind.OTHER
        self._idle.clear()
        if not self.awaited.is_set():
            self.awaited_since = time.monotonic()
            self.awaited.set()

    def pause_session(self, client: _Client, id: int, paused: bool) -> None:
        self._to_guest(client, encode(id, MessageType.FLOW, {"paused": paused}))

    def _to_guest(self, client: _Client, frame: Frame) -> None:
        if self.gate.passage is Passage.OPEN:
            self.gate.send(client, frame)
        elif frame.id in client.sessions:  # else nobody waits for what comes of it
            self.gate.send(client, frame)
            client.update_reading()

    # guest

    def _from_guest(self, frame: Frame) -> None:
        self.last_heard = time.monotonic()
        if self._idle.is_set():
            self.awaited.clear()
        self.on_heard()
        if frame.id == 0:  # to the supervisor: nobody's activity
            return
        self.last_activity = self.last_heard
        client = self._clients.get(min(frame.id // ID_STEP, MAX_CLIENTS - 1))
        if client is None or frame.id not in client.sessions:
            return
        self.exec_log.take(frame)
        client.forward(frame)
        if frame.flags & Flag.TERMINAL:
            self._update_idle()

    def _update_idle(self) -> None:
        if not any(client.sessions for client in self._clients.values()):
            self._idle.set()
            if self.last_heard >= self.awaited_since:
                self.awaited.clear()


def _announcing_machine(ready: Frame) -> Frame:
    """The agent's ``core.ready`` with the feature that is the relay's own."""
    payload = decode(ready.body).payload
    features = payload.get("features")
    announced = [*(features if isinstance(features, list) else ()), "machine"]
    try:
        return encode(ready.id, MessageType.READY, {**payload, "features": announced})
    except ProtocolError:  # a guest that has filled the frame
        return ready
