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
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from microsandbox.agent.protocol import Frame, Message, MessageType, ProtocolError, decode, integer, text
from microsandbox.runtime.guest_link import GuestLink
from microsandbox.store.files import write_atomically
from microsandbox.tools import last_lines

#: Seconds from the start of the machine to ``core.ready``. Generous, because under emulation a busy
#: host makes guests slow; everything that can go wrong by itself is noticed by its own event.
BOOT_TIMEOUT = 120.0
_STAGES = frozenset({"build_vm", "mount", "image", "network", "config", "other"})
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
_INIT_END = re.compile(rb"Attempted to kill init! exitcode=0x([0-9a-f]{8})")
_AGENT_LINE = re.compile(rb"agentd: ([^\r\n]*)")


class BootFailure(Exception):
    """Why the guest did not come up; kept as boot-error.json for the owner."""

    def __init__(self, message: str, stage: str = "other", errno: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.errno = errno

    def save(self, path: Path) -> None:
        document = {
            "t": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
            "stage": self.stage,
            "errno": self.errno,
            "message": self.message,
        }
        write_atomically(path, json.dumps(document, indent=2).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> BootFailure | None:
        """The saved record, if there is a readable one."""
        try:
            document = json.loads(path.read_bytes()[: 64 << 10])
            return cls(str(document["message"]), str(document["stage"]), integer(document, "errno"))
        except (OSError, ValueError, KeyError, TypeError):
            return None


class LinkLost(BootFailure):
    """The agent's port ended; why, the machine's end may tell better."""


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
            stage if stage in _STAGES else "other",
            integer(message.payload, "errno"),
        )
    if message.kind is not kind:
        raise BootFailure(f"the agent sent {message.kind.value} instead of {kind.value}")
    return frame, message


def panic_reason(console: bytes) -> str | None:
    """Why the guest kernel panicked, if it did: its word, and the agent's last one."""
    match = _PANIC.search(console)
    if match is None:
        return None
    reason = match[1].decode("utf-8", "replace")
    if (end := _INIT_END.search(match[1])) is not None:
        reason = f"PID 1 {_how(int(end[1], 16))}"
    if lines := _AGENT_LINE.findall(console):
        reason += f" ({lines[-1].decode('utf-8', 'replace')})"
    return f"the guest kernel panicked: {reason}"


def init_is_done(console: bytes) -> bool:
    """Whether PID 1 ended by itself, with status 0. For the kernel that is a panic as any other end of it."""
    match = _PANIC.search(console)
    end = None if match is None else _INIT_END.search(match[1])
    return end is not None and int(end[1], 16) == 0


def _how(status: int) -> str:
    """A wait(2) status in words."""
    number = status & 0x7F
    return f"was killed by signal {number}" if number else f"exited with status {status >> 8 & 0xFF}"


def explain_exit(status: int, console: bytes, errors: str) -> BootFailure:
    """Why a machine ended before its guest was ready, from what it left behind."""
    if (panic := panic_reason(console)) is not None:
        return BootFailure(panic)
    if errors:
        return BootFailure(f"QEMU failed: {errors}", "build_vm")
    said = last_lines(console) or "it printed nothing"
    return BootFailure(f"the machine ended (status {status}) before the guest was ready; its console: {said}")
