"""QEMU's monitor (QMP): what it says of its machine while that runs, and commands to it.

QMP is lines of JSON: a greeting, then an answer for each command and events between them, see QEMU's
docs/interop/qmp-spec. A QEMU that breaks these rules is not listened to any longer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from microsandbox.errors import VmmError
from microsandbox.vmm.machine import AGENT_PORT, disk_node

#: Bytes of one line. The longest that QEMU has to say here are some hundreds.
_MAX_LINE = 64 << 10
#: Characters of its words that are kept.
_MAX_WORDS = 500

log = logging.getLogger(__name__)


class Monitor(asyncio.Protocol):
    """The QMP connection of one machine."""

    def __init__(self, sock: socket.socket) -> None:
        #: QEMU's word for the cause (ShutdownCause of its QAPI schema), once the machine shut down.
        self.shutdown_cause: str | None = None
        #: Called when nothing in the guest has the agent's port open any more.
        self.on_port_closed: Callable[[], None] = lambda: None
        self._sock = sock
        self._transport: asyncio.Transport
        self._received = b""
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 0
        self._reported = ""
        self._negotiated = asyncio.Event()
        self._ended = asyncio.Event()

    @classmethod
    async def open(cls, sock: socket.socket) -> Monitor:
        """Listen at QEMU's QMP socket. Commands wait until QEMU takes them."""
        monitor = cls(sock)
        await asyncio.get_running_loop().create_connection(lambda: monitor, sock=sock)
        return monitor

    async def pause(self) -> None:
        """Stop the virtual processors, and write what disks hold back. Raises VmmError."""
        await self.execute("stop")

    async def resume(self) -> None:
        """Let the virtual processors go on. Raises VmmError."""
        await self.execute("cont")

    async def resize_disk(self, index: int, size: int) -> None:
        """Tell the guest how large a disk is. Raises VmmError."""
        await self.execute("block_resize", {"node-name": disk_node(index), "size": size})

    async def save_devices(self) -> bytes:
        """The state of all devices of a stopped machine. Raises VmmError."""
        with os.fdopen(os.memfd_create("devices", os.MFD_CLOEXEC), "rb", buffering=0) as file:
            writing = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                fdset = (await self.execute("add-fd", fd=writing))["fdset-id"]
            finally:
                os.close(writing)
            where = {"filename": f"/dev/fdset/{fdset}", "live": False}
            await self.execute("xen-save-devices-state", where)  # of every QEMU, whatever its name says
            await self.execute("remove-fd", {"fdset-id": fdset})
            file.seek(0)
            return file.read()

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, fd: int | None = None
    ) -> Any:
        """Run a QMP command, with a descriptor beside it, and return its answer.

        Raises VmmError with QEMU's reason.
        """
        await self._negotiated.wait()
        try:
            return await self._send(command, arguments or {}, fd)
        except (VmmError, OSError) as error:
            raise VmmError(f"QEMU's {command} failed: {error}") from error

    async def wait_closed(self) -> None:
        """Until QEMU has said its last word."""
        await self._ended.wait()

    def _send(
        self, command: str, arguments: Mapping[str, object], fd: int | None = None
    ) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._ended.is_set():
            answer.set_exception(VmmError("it has ended"))
            return answer
        self._next_id += 1
        request = json.dumps({"execute": command, "arguments": arguments, "id": self._next_id}).encode()
        if fd is None:
            self._transport.write(request)
        else:
            socket.send_fds(self._sock, [request], [fd])
        self._answers[self._next_id] = answer
        return answer

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            for line in lines:
                self._take(json.loads(line))
            if len(self._received) > _MAX_LINE:
                raise ValueError("a line without an end")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning("QEMU's monitor makes no sense and is closed: %s", error)
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.set()
        self._negotiated.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(VmmError("it has ended"))
        self._answers.clear()

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise TypeError(f"{type(message).__name__} instead of an object")
        if "QMP" in message:
            self._send("qmp_capabilities", {}).add_done_callback(self._on_negotiated)
        elif "event" in message:
            self._on_event(message["event"], message.get("data", {}))
        else:
            self._on_answer(message)

    def _on_negotiated(self, answer: asyncio.Future[Any]) -> None:
        if (refusal := answer.exception()) is not None and not self._ended.is_set():
            log.warning("QEMU's monitor takes no commands: %s", refusal)
        self._negotiated.set()

    def _on_answer(self, message: dict[str, Any]) -> None:
        answer = self._answers.pop(message["id"])
        if answer.done():  # nobody waits for it any more
            return
        if "error" in message:
            answer.set_exception(VmmError(str(message["error"]["desc"])[:_MAX_WORDS]))
        else:
            answer.set_result(message["return"])

    def _on_event(self, event: str, data: dict[str, Any]) -> None:
        if event == "SHUTDOWN":
            self.shutdown_cause = str(data.get("reason"))[:_MAX_WORDS]
        elif event == "BLOCK_IO_ERROR":
            what = f"disk {data.get('node-name')}: a {data.get('operation')} failed on the host"
            self._report(f"{what}: {data.get('reason')}"[:_MAX_WORDS])
        elif event == "VSERPORT_CHANGE" and data.get("id") == AGENT_PORT and data.get("open") is False:
            self.on_port_closed()

    def _report(self, what: str) -> None:
        """Log it, unless it was the last thing logged: a full disk fails at each of a guest's writes."""
        if what != self._reported:
            self._reported = what
            log.warning("%s", what)
