"""The supervisor's end of the agent port: a frame at a time in both directions.

Bytes from here are the guest's: an impossible frame means that the guest is broken or hostile, the stream
cannot be trusted any more, and the owner of the link is told once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

from microsandbox.agent.protocol import Frame, FrameSplitter, MessageType, ProtocolError, encode

#: Bytes on their way to the guest before clients are made to wait.
_WRITE_HIGH = 1 << 20


class GuestLink(asyncio.Protocol):
    """Frames to and from agentd. ``lost`` resolves to the reason when the link ends."""

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self._receive: Callable[[Frame], None] | None = None
        self.on_writable: Callable[[bool], None] = lambda _: None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.writable = True
        #: Whether the link ended because the guest broke the protocol.
        self.broken = False

    @classmethod
    async def open(cls, sock: socket.socket) -> GuestLink:
        _, link = await asyncio.get_running_loop().create_connection(cls, sock=sock)
        return link

    def deliver_to(self, receive: Callable[[Frame], None]) -> None:
        """Hand every frame to ``receive`` from now on. Nothing is read before somebody wants it."""
        if self._receive is None:
            self._transport.resume_reading()
        self._receive = receive

    def send(self, frame: Frame) -> None:
        """Queue a frame for the guest; when the link is gone it goes nowhere."""
        if not self._transport.is_closing():
            self._transport.write(frame.raw)

    def send_message(
        self, kind: MessageType, payload: Mapping[str, Any] | None = None, *, id: int = 0
    ) -> None:
        self.send(encode(id, kind, payload))

    def close(self) -> None:
        self._transport.abort()

    def _end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_HIGH)
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self.lost.done():
            return
        try:
            for frame in self._splitter.feed(data):
                assert self._receive is not None
                self._receive(frame)
        except ProtocolError as error:
            self.broken = True
            self._end(f"the guest broke the agent protocol: {error}")
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._end("the agent port was closed")

    def pause_writing(self) -> None:
        self.writable = False
        self.on_writable(False)

    def resume_writing(self) -> None:
        self.writable = True
        self.on_writable(True)
