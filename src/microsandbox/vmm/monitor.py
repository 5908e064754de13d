"""What QEMU says about its machine while it runs (QMP): why it shut down, which disk failed."""

from __future__ import annotations

import logging
import socket

from qemu.qmp import EventListener, Message, QMPClient, QMPError

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

    async def connect(self, sock: socket.socket) -> None:
        """Negotiate. A machine that has ended already has nothing to say."""
        try:
            await self._client.connect(sock)
        except (QMPError, OSError, EOFError) as error:
            log.debug("no QMP: %s", error)

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
