"""``msb run``: a new sandbox for one command, or a named one that is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from microsandbox import terminal
from microsandbox.cli import output
from microsandbox.cli.acquire import Held, take
from microsandbox.cli.creation import Creation, create, creation_options_given
from microsandbox.cli.guest_command import DetachedError, GuestCommand, resolve_command, run_guest_command
from microsandbox.cli.interrupts import Signals, run_interruptible
from microsandbox.cli.model import Invocation, UsageError
from microsandbox.cli.timings import Timings
from microsandbox.errors import SandboxNotFoundError
from microsandbox.sandbox.detach_keys import DEFAULT, DetachKeys
from microsandbox.sandbox.sandbox import Sandbox


def run(invocation: Invocation) -> int:
    if invocation["image"] is None:
        raise UsageError("the following arguments are required: IMAGE", invocation.path)
    creation = Creation.of(invocation)
    if invocation["detach"]:
        return run_interruptible(lambda signals: signals.guard(_start_detached(invocation, creation)))
    return run_interruptible(lambda signals: _run(invocation, creation, signals))


async def _run(invocation: Invocation, creation: Creation, signals: Signals) -> int:
    timings = Timings()
    held = await signals.guard(_acquire(invocation, creation))
    timings.mark("connected")
    try:
        return await run_in(held, invocation, signals, timings.mark)
    finally:
        if invocation["timings"]:
            timings.take(held)
        await held.release(signals, timings.mark)
        if invocation["timings"]:
            timings.show()


async def _acquire(invocation: Invocation, creation: Creation) -> Held:
    if await _exists(creation):
        _warn_of_reuse(invocation, creation)
        return await take(creation.name, quiet=creation.quiet)
    sandbox = await create(creation, detached=False)
    return Held(sandbox, creation.name, started_here=True, throw_away=creation.generated)


async def _start_detached(invocation: Invocation, creation: Creation) -> int:
    """Boot it, or leave it running, and print its name."""
    if await _exists(creation):
        _warn_of_reuse(invocation, creation)
        held = await take(creation.name, quiet=creation.quiet, detached=True)
        sandbox = held.sandbox
    else:
        sandbox = await create(creation, detached=True)
    await sandbox.detach()
    if invocation.guest_command:
        output.warn(
            f"command after -- is not run in --detach mode; sandbox '{creation.name}' is running in the "
            f"background (use `msb exec {creation.name} -- ...`)"
        )
    sys.stdout.write(f"{creation.name}\n")
    return 0


async def run_in(
    held: Held, invocation: Invocation, signals: Signals, mark: Callable[[str], None] = lambda _: None
) -> int:
    """Run the invocation's command in a connected sandbox, for `run` and `exec`."""
    signals.check()
    interactive = terminal.stdin_is_terminal()
    config = (await Sandbox.get(held.name)).config()
    argv = resolve_command(config, invocation.guest_command, interactive=interactive)
    if argv is None:
        output.warn("no command provided and stdin is not a terminal")
        return 0
    tty = invocation["tty"] or (interactive and not invocation.guest_command)
    command = GuestCommand(
        argv,
        tty,
        invocation["timeout"],
        _exec_options(invocation),
        DetachKeys(invocation["detach_keys"] or DEFAULT) if tty and interactive else None,
        mark,
    )
    try:
        return await run_guest_command(held.sandbox, held.name, command, signals)
    except DetachedError:
        held.stays = True
        output.say(f"\r\ndetached; sandbox '{held.name}' is running")
        return 0


def _exec_options(invocation: Invocation) -> dict[str, Any]:
    """Keywords of ``exec_stream``. Those of `run` belong to the sandbox already, except for the limits."""
    options: dict[str, Any] = {"rlimits": invocation["rlimit"] or None}
    if invocation.command.name == "exec":
        options |= {
            "cwd": invocation["workdir"],
            "user": invocation["user"],
            "env": dict(invocation["env"]),
        }
    return options


async def _exists(creation: Creation) -> bool:
    if creation.generated or creation.replaces:
        return False
    try:
        await Sandbox.get(creation.name)
    except SandboxNotFoundError:
        return False
    return True


def _warn_of_reuse(invocation: Invocation, creation: Creation) -> None:
    if creation_options_given(invocation):
        output.warn(
            f"sandbox '{creation.name}' already exists; creation flags ignored (use --replace to recreate)"
        )
