"""The agent protocol, generation 5: frames, envelopes and message types (pure).

    frame    u32 length (= 5 + body) | u32 id | u8 flags | body          big-endian
    body     CBOR map {"v": generation, "t": type, "p": CBOR of the payload as a byte string}

It is the protocol of microsandbox 0.5.6, so its clients can talk to our relay. Ours on top: the
``core.boot.*`` messages, which only the supervisor and the agent exchange before ``core.ready``;
``core.flow``, which an agent that lists the feature ``flow`` in ``core.ready`` understands; ``core.ping``,
which the supervisor sends and the agent answers with ``core.pong`` (feature ``ping``); and
``core.machine.*``, which clients and the relay exchange about the machine, past the agent (feature
``machine``, which the relay adds to the agent's).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from enum import IntFlag, StrEnum
from typing import Any

from msgspec import Struct

GENERATION = 5
#: Bounds of the length field: the smallest is an id and flags without a body.
MIN_LENGTH, MAX_LENGTH = 5, 4 << 20
#: Bulk data per frame from the host. Small enough that another session's frame is soon let through.
DATA_CHUNK = 256 << 10

_HEADER = struct.Struct(">IIB")
HEADER_SIZE = _HEADER.size


class ProtocolError(Exception):
    """The peer broke the protocol."""


class Flag(IntFlag):
    NONE = 0
    TERMINAL = 1
    SESSION_START = 2
    SHUTDOWN = 4


class MessageType(StrEnum):
    READY = "core.ready"
    INIT_RESOLVED = "core.init.resolved"
    INIT_ACK = "core.init.ack"
    SHUTDOWN = "core.shutdown"
    CLIENT_DISCONNECTED = "core.relay.client.disconnected"
    CLOCK_SYNC = "core.clock.sync"
    ERROR = "core.error"
    FLOW = "core.flow"
    PING = "core.ping"
    PONG = "core.pong"
    MACHINE_PAUSE = "core.machine.pause"
    MACHINE_RESUME = "core.machine.resume"
    MACHINE_STATE = "core.machine.state"
    BOOT_HELLO = "core.boot.hello"
    BOOT_ROOT = "core.boot.root"
    BOOT_CONFIG = "core.boot.config"
    BOOT_FAILED = "core.boot.failed"
    EXEC_REQUEST = "core.exec.request"
    EXEC_STARTED = "core.exec.started"
    EXEC_STDIN = "core.exec.stdin"
    EXEC_STDIN_ERROR = "core.exec.stdin.error"
    EXEC_STDOUT = "core.exec.stdout"
    EXEC_STDERR = "core.exec.stderr"
    EXEC_EXITED = "core.exec.exited"
    EXEC_FAILED = "core.exec.failed"
    EXEC_RESIZE = "core.exec.resize"
    EXEC_SIGNAL = "core.exec.signal"
    FS_REQUEST = "core.fs.request"
    FS_RESPONSE = "core.fs.response"
    FS_DATA = "core.fs.data"
    TCP_CONNECT = "core.tcp.connect"
    TCP_CONNECTED = "core.tcp.connected"
    TCP_DATA = "core.tcp.data"
    TCP_EOF = "core.tcp.eof"
    TCP_CLOSE = "core.tcp.close"
    TCP_CLOSED = "core.tcp.closed"
    TCP_FAILED = "core.tcp.failed"


_FLAGS = {
    MessageType.SHUTDOWN: Flag.SHUTDOWN,
    MessageType.ERROR: Flag.TERMINAL,
    MessageType.MACHINE_PAUSE: Flag.SESSION_START,
    MessageType.MACHINE_RESUME: Flag.SESSION_START,
    MessageType.MACHINE_STATE: Flag.TERMINAL,
    MessageType.EXEC_REQUEST: Flag.SESSION_START,
    MessageType.EXEC_EXITED: Flag.TERMINAL,
    MessageType.EXEC_FAILED: Flag.TERMINAL,
    MessageType.FS_REQUEST: Flag.SESSION_START,
    MessageType.FS_RESPONSE: Flag.TERMINAL,
    MessageType.TCP_CONNECT: Flag.SESSION_START,
    MessageType.TCP_CLOSED: Flag.TERMINAL,
    MessageType.TCP_FAILED: Flag.TERMINAL,
}

_SINCE = {"core.error": 5, "core.flow": 5, "core.machine.": 5, "core.fs.": 2, "core.tcp.": 4}


def since(name: str) -> int:
    """The generation of the protocol that brought a type of message."""
    return next((generation for prefix, generation in _SINCE.items() if name.startswith(prefix)), 1)


_NAMES = frozenset(MessageType)

#: Our extensions, and the features that announce them. Nobody announces those of the boot to clients.
_FEATURES = {
    "core.flow": "flow",
    "core.ping": "ping",
    "core.pong": "ping",
    "core.machine.": "machine",
    "core.boot.": "",
}


def understood(name: str, generation: int, features: Collection[str]) -> bool:
    """Whether a peer of that generation, which has announced these features, knows a type of message."""
    if name not in _NAMES:
        return False
    needed = next((feature for prefix, feature in _FEATURES.items() if name.startswith(prefix)), None)
    return since(name) <= generation and (needed is None or needed in features)


#: Requests to the relay: answered with ``core.machine.state`` or ``core.error``, unknown to the agent.
MACHINE_REQUESTS = frozenset({MessageType.MACHINE_PAUSE, MessageType.MACHINE_RESUME})

#: What a relay client may send; everything else is the relay's own business with the agent.
CLIENT_TYPES = MACHINE_REQUESTS | frozenset(
    {
        MessageType.SHUTDOWN,
        MessageType.FLOW,
        MessageType.EXEC_REQUEST,
        MessageType.EXEC_STDIN,
        MessageType.EXEC_RESIZE,
        MessageType.EXEC_SIGNAL,
        MessageType.FS_REQUEST,
        MessageType.FS_DATA,
        MessageType.TCP_CONNECT,
        MessageType.TCP_DATA,
        MessageType.TCP_EOF,
        MessageType.TCP_CLOSE,
    }
)


class Refusal(StrEnum):
    """The kinds of ``core.error`` that a client acts on; the relay has others, and so has the agent."""

    PAUSED = "sandbox_paused"
    NOT_RUNNING = "sandbox_not_running"
    UNRESPONSIVE = "agent_unresponsive"
    LOST = "agent_lost"


def flags_of(kind: MessageType) -> Flag:
    """The flags are a function of the type."""
    return _FLAGS.get(kind, Flag.NONE)


class Frame(Struct, frozen=True):
    """One frame as it travels, its length prefix included."""

    raw: bytes
    id: int
    flags: int

    @property
    def body(self) -> bytes:
        return self.raw[HEADER_SIZE:]

    @classmethod
    def build(cls, id: int, flags: int, body: bytes) -> Frame:
        length = MIN_LENGTH + len(body)
        if length > MAX_LENGTH:
            raise ProtocolError(f"frame of {length} bytes is larger than {MAX_LENGTH}")
        return cls(_HEADER.pack(length, id, flags) + body, id, flags)


class FrameSplitter:
    """Cuts a byte stream into frames; holds at most one frame's bytes. After an error it is useless."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes. Raises ProtocolError for an impossible length."""
        buffer = self._buffer
        buffer += data
        frames, position, available = [], 0, len(buffer)
        while available - position >= 4:
            length = int.from_bytes(buffer[position : position + 4], "big")
            if not MIN_LENGTH <= length <= MAX_LENGTH:
                raise ProtocolError(f"frame length {length} is outside {MIN_LENGTH}..{MAX_LENGTH}")
            end = position + 4 + length
            if end > available:
                break
            raw = bytes(buffer[position:end])
            _, id, flags = _HEADER.unpack_from(raw)
            frames.append(Frame(raw, id, flags))
            position = end
        del buffer[:position]
        return frames


class Message(Struct, frozen=True):
    """A decoded body. ``payload`` is a map, empty for messages without one."""

    kind: MessageType
    payload: Mapping[str, Any]


def encode_body(kind: MessageType, payload: Mapping[str, Any] | None) -> bytes:
    """The CBOR envelope of one message; ``None`` is the payload of a unit message."""
    import cbor2

    return cbor2.dumps({"v": GENERATION, "t": kind.value, "p": cbor2.dumps(payload)})


def encode(id: int, kind: MessageType, payload: Mapping[str, Any] | None = None) -> Frame:
    """A whole frame with the flags its type demands."""
    return Frame.build(id, flags_of(kind), encode_body(kind, payload))


def decode_envelope(body: bytes) -> tuple[str, bytes, int]:
    """Type, undecoded payload and generation. Raises ProtocolError."""
    envelope = _load(body, "envelope")
    if not isinstance(envelope, dict):
        raise ProtocolError("envelope is not a map")
    kind, payload, generation = envelope.get("t"), envelope.get("p"), envelope.get("v")
    if not isinstance(kind, str) or not isinstance(payload, bytes) or not isinstance(generation, int):
        raise ProtocolError("envelope lacks v, t or p of the right type")
    return kind, payload, generation


def decode(body: bytes) -> Message:
    """Envelope and payload. Raises ProtocolError for anything this side does not know."""
    name, encoded, _ = decode_envelope(body)
    try:
        kind = MessageType(name)
    except ValueError:
        raise ProtocolError(f"unknown message type {name[:64]!r}") from None
    payload = _load(encoded, f"payload of {name}")
    if payload is None:
        payload = {}
    if not isinstance(payload, dict):
        raise ProtocolError(f"payload of {name} is not a map")
    return Message(kind, payload)


def _refuse_tag(*_: object) -> None:
    raise ProtocolError("tags are not part of the protocol")


#: No message has semantic tags, and some (big fractions) take minutes to decode: none is.
_NO_TAGS = dict.fromkeys(
    (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag
)
_MAX_DEPTH = 16


def _load(data: bytes, what: str) -> Any:
    import cbor2

    try:
        return cbor2.loads(data, semantic_decoders=_NO_TAGS, tag_hook=_refuse_tag, max_depth=_MAX_DEPTH)
    except Exception as error:  # cbor2 raises many kinds for hostile input, RecursionError among them
        raise ProtocolError(f"{what} is not valid CBOR: {error}") from error


def text(payload: Mapping[str, Any], key: str, limit: int = 4096) -> str | None:
    """An optional text field of a guest's message, shortened to ``limit`` characters."""
    value = payload.get(key)
    return value[:limit] if isinstance(value, str) else None


def integer(payload: Mapping[str, Any], key: str) -> int | None:
    """An optional whole number of a guest's message, if it fits in 64 bits."""
    value = payload.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**64:
        return value
    return None


def binary(payload: Mapping[str, Any], key: str) -> bytes:
    """A bytes field of a guest's message; empty when it is not one."""
    value = payload.get(key)
    return value if isinstance(value, bytes) else b""
