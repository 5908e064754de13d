"""Bringing the guest up: from agentd's first word to ``core.ready``.

    agentd                        supervisor
      core.boot.hello      ──►                 kernel and agent run; nothing is this sandbox's yet
                           ◄──  core.boot.config    root disks, names, entropy, clock, scripts
      core.init.resolved   ──►                 the root is mounted, the default user known
                           ◄──  core.init.ack
      core.ready           ──►                 sessions may start

``core.boot.failed`` may take the place of any of the agent's messages.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
_AGENT_LINE = re.compile(rb"agentd: ([^\r\n]*)")


@dataclass(eq=False)
class BootFailure(Exception):
    """Why the guest did not come up; kept as boot-error.json for the owner."""

    message: str
    stage: str = "other"
    errno: int | None = None

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


async def bring_up(guest: GuestLink, config: Mapping[str, Any]) -> Frame:
    """Run the handshake and return the ``core.ready`` frame. Raises BootFailure.

    ``config`` is the body of ``core.boot.config`` without the clock and the entropy, which must be
    fresh when they are sent.
    """
    frames: asyncio.Queue[Frame] = asyncio.Queue()
    guest.on_frame = frames.put_nowait
    stage = BootStage.KERNEL
    try:
        async with asyncio.timeout(BOOT_TIMEOUT):
            await _expect(guest, frames, MessageType.BOOT_HELLO)
            stage = BootStage.ROOT
            guest.send_message(
                MessageType.BOOT_CONFIG,
                {**config, "unix_time_nanos": time.time_ns(), "entropy": os.urandom(64)},
            )
            await _expect(guest, frames, MessageType.INIT_RESOLVED)
            guest.send_message(MessageType.INIT_ACK, {})
            stage = BootStage.AGENT
            ready, _ = await _expect(guest, frames, MessageType.READY)
            return ready
    except TimeoutError:
        raise BootFailure(f"not ready after {BOOT_TIMEOUT:g} s: {stage.value}") from None


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
    if lines := _AGENT_LINE.findall(console):
        reason += f" ({lines[-1].decode('utf-8', 'replace')})"
    return f"the guest kernel panicked: {reason}"


def explain_exit(status: int, console: bytes, errors: str) -> BootFailure:
    """Why a machine ended before its guest was ready, from what it left behind."""
    if (panic := panic_reason(console)) is not None:
        return BootFailure(panic)
    if errors:
        return BootFailure(f"QEMU failed: {errors}", "build_vm")
    said = last_lines(console) or "it printed nothing"
    return BootFailure(f"the machine ended (status {status}) before the guest was ready; its console: {said}")
