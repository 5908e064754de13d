"""Bringing the guest up: from agentd's first word to ``core.ready``.

    agentd                        supervisor
      core.boot.hello      ──►                 kernel and agent run; nothing is this sandbox's yet
                           ◄──  core.boot.root      only for an image's template: its disks
      core.boot.hello      ──►                 the image is mounted, and still nothing is this sandbox's
                           ◄──  core.boot.config    names, entropy, clock, scripts; root disks unless mounted
      core.init.resolved   ──►                 the root is mounted, the default user known
                           ◄──  core.init.ack
      core.ready           ──►                 sessions may start

``core.boot.failed`` may take the place of any of the agent's messages. A guest that goes on from a template
has said hello in another life: it is sent its configuration at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from microsandbox.agent.protocol import Frame, Message, MessageType, ProtocolError, decode, integer, text
from microsandbox.runtime.boot_failure import STAGES, BootFailure, LinkLost
from microsandbox.runtime.guest_link import GuestLink

#: Seconds from the start of the machine to ``core.ready``. Generous, because under emulation a busy
#: host makes guests slow; everything that can go wrong by itself is noticed by its own event.
BOOT_TIMEOUT = 120.0


class BootStage(StrEnum):
    """How far the guest has come."""

    KERNEL = "the kernel has not started the agent"
    ROOT = "the agent is mounting the root file system"
    AGENT = "the agent is starting"


class Handshake:
    """The steps of a boot, on a link that nobody else reads. Every one of them may raise BootFailure."""

    def __init__(self, guest: GuestLink) -> None:
        self._guest = guest
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        guest.deliver_to(self._frames.put_nowait)

    async def hello(self) -> None:
        """Wait for a guest that is nobody's yet."""
        await self._expect(MessageType.BOOT_HELLO)

    async def mount(self, root: Mapping[str, str], tmp_size_mib: int) -> None:
        """Have the image mounted ahead of everything else, and a tmpfs on its /tmp."""
        self._guest.send_message(MessageType.BOOT_ROOT, {"root": root, "tmp_size_mib": tmp_size_mib})
        await self.hello()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Make it this sandbox. ``config`` is the body of ``core.boot.config`` without clock and entropy,
        which must be fresh when they are sent.
        """
        self._guest.send_message(
            MessageType.BOOT_CONFIG,
            {**config, "unix_time_nanos": time.time_ns(), "entropy": os.urandom(64)},
        )

    async def resolved(self) -> None:
        """Wait for the root to be mounted and the names to be set."""
        await self._expect(MessageType.INIT_RESOLVED)
        self._guest.send_message(MessageType.INIT_ACK, {"unix_time_nanos": time.time_ns()})

    async def ready(self) -> Frame:
        """The ``core.ready`` frame."""
        return (await self._expect(MessageType.READY))[0]

    async def _expect(self, kind: MessageType) -> tuple[Frame, Message]:
        return await _expect(self._guest, self._frames, kind)


async def bring_up(
    guest: GuestLink,
    config: Mapping[str, Any] | None,
    mark: Callable[[str], None] = lambda _: None,
    *,
    resumed: bool = False,
    timeout: float = BOOT_TIMEOUT,
) -> Frame:
    """Run the handshake and return the ``core.ready`` frame. Raises BootFailure.

    ``resumed`` guests have said hello already; without a ``config`` they have been told theirs, too.
    ``mark`` is told each stage that was reached.
    """
    handshake = Handshake(guest)
    stage = BootStage.KERNEL
    try:
        async with asyncio.timeout(timeout):
            if not resumed:
                await handshake.hello()
                mark("agent's hello")
            stage = BootStage.ROOT
            if config is not None:
                handshake.configure(config)
            await handshake.resolved()
            mark("guest configured")
            stage = BootStage.AGENT
            ready = await handshake.ready()
            mark("guest ready")
            return ready
    except TimeoutError:
        raise BootFailure(f"not ready after {timeout:g} s: {stage.value}") from None


async def _expect(guest: GuestLink, frames: asyncio.Queue[Frame], kind: MessageType) -> tuple[Frame, Message]:
    """The next message, which must be of that kind. Anything else fails the boot."""
    getter = asyncio.ensure_future(frames.get())
    try:
        await asyncio.wait((getter, guest.lost), return_when=asyncio.FIRST_COMPLETED)
        if not getter.done():
            raise LinkLost(guest.lost.result())
        frame = getter.result()
    finally:
        getter.cancel()
    try:
        message = decode(frame.body)
    except ProtocolError as error:
        raise BootFailure(f"the agent sent garbage instead of {kind.value}: {error}") from error
    if message.kind is MessageType.BOOT_FAILED:
        stage = text(message.payload, "stage") or "other"
        raise BootFailure(
            text(message.payload, "message") or "the agent gave no reason",
            stage if stage in STAGES else "other",
            integer(message.payload, "errno"),
        )
    if message.kind is not kind:
        raise BootFailure(f"the agent sent {message.kind.value} instead of {kind.value}")
    return frame, message
