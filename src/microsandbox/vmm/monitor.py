"""QEMU's monitor (QMP): what it says of its machine while that runs, and stopping the machine for a while."""

from __future__ import annotations

import asyncio
import logging
import socket

from qemu.qmp import EventListener, Message, QMPClient, QMPError

from microsandbox.errors import VmmError

log = logging.getLogger(__name__)


class Monitor:
    """The QMP connection of one machine."""

    def __init__(self, name: str) -> None:
        self._client = QMPClient(name)
        self._client.logger.setLevel(logging.CRITICAL + 1)  # a machine that ends takes its monitor along
        self._listener = EventListener(("SHUTDOWN", "BLOCK_IO_ERROR"), self._on_event)
        self._client.register_listener(self._listener)
        #: QEMU's word for the cause (ShutdownCause of its QAPI schema), once the machine shut down.
        self.shutdown_cause: str | None = None
        self._reported = ""
        self._negotiated = asyncio.Event()

    async def connect(self, sock: socket.socket) -> None:
        """Negotiate. A machine that has ended already has nothing to say."""
        try:
            await self._client.connect(sock)
        except (QMPError, OSError, EOFError) as error:
            log.debug("no QMP: %s", error)
        finally:
            self._negotiated.set()

    async def pause(self) -> None:
        """Stop the virtual processors, and write what disks hold back. Raises VmmError."""
        await self._execute("stop")

    async def resume(self) -> None:
        """Let the virtual processors go on. Raises VmmError."""
        await self._execute("cont")

    async def _execute(self, command: str) -> None:
        await self._negotiated.wait()
        try:
            await self._client.execute(command)
        except QMPError as error:
            raise VmmError(f"QEMU did not follow the command '{command}': {error}") from error

    async def close(self) -> None:
        try:
            await self._client.disconnect()
        except (QMPError, OSError, EOFError) as error:
            log.debug("QMP ended: %s", error)

    def _on_event(self, event: Message) -> bool:
        """An event filter that uses up what it understands: nobody reads the listener's queue."""
        data = event.get("data")
        if isinstance(data, dict):
            if event["event"] == "SHUTDOWN":
                self.shutdown_cause = str(data.get("reason"))
            else:
                self._report(
                    f"disk {data.get('node-name')}: a {data.get('operation')} failed on the host", data
                )
        return False

    def _report(self, what: str, data: dict[str, object]) -> None:
        """Log it, unless it was the last thing logged: a full disk fails at each of a guest's writes."""
        if what != self._reported:
            self._reported = what
            log.warning("%s: %s", what, data.get("reason"))
