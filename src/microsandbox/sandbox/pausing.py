"""Asking a sandbox's supervisor to pause its machine, or to let it go on."""

from __future__ import annotations

import asyncio

from microsandbox.agent.connection import Connection
from microsandbox.agent.protocol import Message, MessageType, Refusal, text
from microsandbox.errors import AgentClientError, MicrosandboxError, SandboxNotRunningError
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.lifecycle import CONNECT_TIMEOUT
from microsandbox.store.sandboxes import Status

#: Seconds for QEMU to stop its machine: it waits for what the guest is writing to its disks.
_CONFIRM_TIMEOUT = 30.0


async def pause(context: Context, name: str) -> None:
    """Stop the machine's processors; fine if they are stopped.

    Raises SandboxNotFoundError, SandboxNotRunningError, AgentClientError.
    """
    await _ask(context, name, "pause", MessageType.MACHINE_PAUSE)


async def resume(context: Context, name: str) -> None:
    """Let the machine go on; fine if it runs. Raises as pause()."""
    await _ask(context, name, "resume", MessageType.MACHINE_RESUME)


async def _ask(context: Context, name: str, verb: str, kind: MessageType) -> None:
    _check_alive(context, name, verb)
    try:
        answer = await _exchange(context, name, kind)
    except AgentClientError:
        _check_alive(context, name, verb)  # it may have ended meanwhile
        raise
    if answer.kind is MessageType.MACHINE_STATE:
        return
    reason = text(answer.payload, "message") or "the runtime gave no reason"
    if answer.payload.get("kind") == Refusal.NOT_RUNNING:
        raise SandboxNotRunningError(reason)
    raise MicrosandboxError(f"cannot {verb} sandbox '{name}': {reason}")


def _check_alive(context: Context, name: str, verb: str) -> None:
    row = context.sandboxes.get(name)
    if row.status not in (Status.RUNNING, Status.PAUSED):
        raise SandboxNotRunningError(
            f"cannot {verb} sandbox '{name}': status is {row.status.value} (expected Running or Paused)"
        )
    if not row.supervised:
        raise SandboxNotRunningError(f"cannot {verb} sandbox '{name}': it is still being started")


async def _exchange(context: Context, name: str, kind: MessageType) -> Message:
    """Ask, on a connection of its own: one that commands use may be full of their input."""
    connection = await Connection.open(context.home.sandbox(name).agent_socket, timeout=CONNECT_TIMEOUT)
    try:
        async with asyncio.timeout(_CONFIRM_TIMEOUT):
            session = await connection.open_session(kind, {})
            answer = await session.next_message()
    except TimeoutError:
        raise AgentClientError(f"the runtime did not confirm within {_CONFIRM_TIMEOUT:g} s") from None
    finally:
        connection.close()
    if answer is None:
        raise AgentClientError("the runtime's answer cannot be understood")
    return answer
