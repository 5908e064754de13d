"""QEMU's monitor (QMP): what it says of its machine while that runs, and stopping the machine for a while.

The library is imported with the first connection: nothing on the way to a running guest needs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microsandbox.errors import VmmError
from microsandbox.vmm.machine import disk_node

if TYPE_CHECKING:
    from qemu.qmp import Message, QMPClient

log = logging.getLogger(__name__)


class Monitor:
    """The QMP connection of one machine."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._client: QMPClient | None = None
        #: QEMU's word for the cause (ShutdownCause of its QAPI schema), once the machine shut down.
        self.shutdown_cause: str | None = None
        self._reported = ""
        self._negotiated = asyncio.Event()

    async def connect(self, sock: socket.socket) -> None:
        """Negotiate. A machine that has ended already has nothing to say."""
        from qemu.qmp import EventListener, QMPClient, QMPError

        self._client = client = QMPClient(self._name)
        client.logger.setLevel(logging.CRITICAL + 1)  # a machine that ends takes its monitor along
        client.register_listener(EventListener(("SHUTDOWN", "BLOCK_IO_ERROR"), self._on_event))
        try:
            await client.connect(sock)
        except (QMPError, OSError, EOFError) as error:
            log.debug("no QMP: %s", error)
        finally:
            self._negotiated.set()

    async def pause(self) -> None:
        """Stop the virtual processors, and write what disks hold back. Raises VmmError."""
        await self.execute("stop")

    async def resume(self) -> None:
        """Let the virtual processors go on. Raises VmmError."""
        await self.execute("cont")

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a QMP command, once that is possible. Raises VmmError with QEMU's reason."""
        from qemu.qmp import QMPError

        await self._negotiated.wait()
        assert self._client is not None
        try:
            return await self._client.execute(command, dict(arguments or {}))
        except (QMPError, OSError, EOFError) as error:
            raise VmmError(f"QEMU's {command} failed: {error}") from error

    async def resize_disk(self, index: int, size: int) -> None:
        """Tell the guest how large a disk is. Raises VmmError."""
        await self.execute("block_resize", {"node-name": disk_node(index), "size": size})

    async def save_devices(self) -> bytes:
        """The state of all devices of a stopped machine. Raises VmmError."""
        await self._negotiated.wait()
        assert self._client is not None
        with os.fdopen(os.memfd_create("devices", os.MFD_CLOEXEC), "rb", buffering=0) as file:
            writing = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._client.send_fd_scm(writing)
            finally:
                os.close(writing)
            fdset = (await self.execute("add-fd"))["fdset-id"]
            where = {"filename": f"/dev/fdset/{fdset}", "live": False}
            await self.execute("xen-save-devices-state", where)  # of every QEMU, whatever its name says
            await self.execute("remove-fd", {"fdset-id": fdset})
            file.seek(0)
            return file.read()

    async def close(self) -> None:
        from qemu.qmp import QMPError

        if self._client is None:
            return
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
