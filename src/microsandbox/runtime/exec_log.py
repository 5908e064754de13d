"""What commands print, kept as ``exec.log``: one JSON object a line, as microsandbox writes it.

    {"t": "2026-01-31T23:59:59.123Z", "s": "stdout", "d": "hello\\n", "id": 1}

``s`` is ``stdout`` or ``stderr``, ``output`` of a command on a terminal, ``system`` for our own marks; ``id``
counts the commands since the sandbox's start. Data that is binary is kept as it is, in base64 and with
``"e": "b64"``: a character that was cut by the end of a chunk must not be lost, and a zero byte would take
six.

Lines are written once for all frames that arrived together, and what the disk does not take is dropped:
neither a guest that floods nor a full disk holds up the relay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from binascii import b2a_base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.json import Encoder

from microsandbox.agent.protocol import Frame, MessageType, ProtocolError, binary, decode
from microsandbox.runtime.log_files import RotatingFile

NAME = "exec.log"
STARTED, STOPPED = "--- sandbox started ---\n", "--- sandbox stopped ---\n"
#: Bytes of output in a line, and bytes of lines that are written at once: readers can rely on short lines,
#: and a file on not growing far beyond its limit.
_CHUNK, _BATCH = 64 << 10, 512 << 10

_encode = Encoder().encode
log = logging.getLogger(__name__)


class _Line(Struct, frozen=True, omit_defaults=True):
    t: str
    s: str
    d: str
    id: int | None = None
    e: str | None = None


class _Session(Struct, frozen=True):
    number: int
    sources: Mapping[MessageType, str]


_PIPES = {MessageType.EXEC_STDOUT: "stdout", MessageType.EXEC_STDERR: "stderr"}
_TERMINAL = {MessageType.EXEC_STDOUT: "output", MessageType.EXEC_STDERR: "output"}


class ExecLog:
    """Fed by the relay with every command and every frame of the guest's. Never raises."""

    def __init__(self, file: RotatingFile | None) -> None:
        self._file = file
        self._sessions: dict[int, _Session] = {}
        self._commands = 0
        self._waiting: list[bytes] = []
        self._size = 0
        self._second, self._second_text = -1, ""
        self._lost = 0

    @classmethod
    def open(cls, directory: Path) -> ExecLog:
        """The log in that directory; one that keeps nothing when it cannot be opened."""
        try:
            return cls(RotatingFile(directory / NAME))
        except OSError as error:
            log.warning("what commands print is not kept: %s", error)
            return cls(None)

    def begin(self, id: int, request: Mapping[str, Any]) -> None:
        """A command was asked for. Its output will come in frames of that id."""
        self._commands += 1
        self._sessions[id] = _Session(self._commands, _TERMINAL if request.get("tty") is True else _PIPES)

    def end(self, id: int) -> None:
        self._sessions.pop(id, None)

    def take(self, frame: Frame) -> None:
        """A frame of the guest: kept if it is output of a command."""
        session = self._sessions.get(frame.id)
        if session is None or self._file is None:
            return
        try:
            message = decode(frame.body)
        except ProtocolError:  # whoever ran the command will say so
            return
        source = session.sources.get(message.kind)
        if source is not None:
            self._keep(source, binary(message.payload, "data"), session.number)

    def mark(self, text: str) -> None:
        """A line of our own, written at once."""
        if self._file is not None:
            self._add(_encode(_Line(self._now(), "system", text)))
            self._flush()

    def close(self) -> None:
        if self._file is None:
            return
        self._flush()
        if self._lost:
            log.warning("%s: up to %d lines were lost", NAME, self._lost)
        self._file.close()
        self._file = None

    def _keep(self, source: str, data: bytes, number: int) -> None:
        now = self._now()
        for start in range(0, len(data), _CHUNK):
            text, encoding = _as_text(data[start : start + _CHUNK])
            self._add(_encode(_Line(now, source, text, number, encoding)))

    def _add(self, line: bytes) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting += (line, b"\n")
        self._size += len(line) + 1
        if self._size >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting or self._file is None:
            return
        if not self._file.write(b"".join(self._waiting)):
            if not self._lost:
                log.warning("%s: the disk takes no more, lines are lost", NAME)
            self._lost += len(self._waiting) // 2
        self._waiting.clear()
        self._size = 0

    def _now(self) -> str:
        nanoseconds = time.time_ns()
        second = nanoseconds // 1_000_000_000
        if second != self._second:
            self._second, self._second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{nanoseconds // 1_000_000 % 1000:03d}Z"


def _as_text(data: bytes) -> tuple[str, str | None]:
    if b"\0" not in data:
        try:
            return data.decode(), None
        except UnicodeDecodeError:
            pass
    return b2a_base64(data, newline=False).decode(), "b64"
