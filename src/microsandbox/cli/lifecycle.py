"""From ``start`` to ``remove``: the same done to each sandbox that is named or carries the labels."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from microsandbox.cli import output
from microsandbox.cli.failures import FAILURE, report
from microsandbox.cli.interrupts import run_cancellable
from microsandbox.cli.model import Invocation, UsageError
from microsandbox.cli.spinner import progress
from microsandbox.errors import MicrosandboxError, SandboxNotFoundError
from microsandbox.sandbox.sandbox import Sandbox

Act = Callable[[str], Awaitable[None]]


def start(invocation: Invocation) -> int:
    return _each(invocation, "Starting", "Started", _start)


def stop(invocation: Invocation) -> int:
    async def act(name: str) -> None:
        handle = await Sandbox.get(name)
        if invocation["force"]:
            await handle.kill()
        else:
            await handle.stop(invocation["timeout"])

    return _each(invocation, "Stopping", "Stopped", act)


def pause(invocation: Invocation) -> int:
    async def act(name: str) -> None:
        await (await Sandbox.get(name)).pause()

    return _each(invocation, "Pausing", "Paused", act)


def resume(invocation: Invocation) -> int:
    async def act(name: str) -> None:
        await (await Sandbox.get(name)).resume()

    return _each(invocation, "Resuming", "Resumed", act)


def remove(invocation: Invocation) -> int:
    return _each(invocation, "Removing", "Removed", _force_remove if invocation["force"] else Sandbox.remove)


async def _start(name: str) -> None:
    from microsandbox.cli.acquire import ensure_image

    await ensure_image(await Sandbox.get(name))
    sandbox = await Sandbox.start(name, detached=True)
    await sandbox.detach()


async def _force_remove(name: str) -> None:
    """As ``rm -f``: one that runs is killed, one that is not there is fine."""
    with suppress(SandboxNotFoundError):
        await (await Sandbox.get(name)).kill()
    with suppress(SandboxNotFoundError):
        await Sandbox.remove(name)


def _each(invocation: Invocation, label: str, done: str, act: Act) -> int:
    if not invocation["name"] and not invocation["label"]:
        raise UsageError("name a sandbox, or give a --label", invocation.path)
    return run_cancellable(lambda: _each_of(invocation, label, done, act))


async def _each_of(invocation: Invocation, label: str, done: str, act: Act) -> int:
    """Try all of them; every failure is said, whether quiet or not."""
    names = await _targets(invocation)
    if not names:
        output.warn("no sandboxes matched the given labels")
    code = 0
    for name in names:
        try:
            async with progress(label, done, name, quiet=invocation["quiet"]):
                await act(name)
        except (MicrosandboxError, OSError) as error:
            report(error)
            code = FAILURE
    return code


async def _targets(invocation: Invocation) -> list[str]:
    """The names in their order, each once, then what carries all of the labels."""
    names = dict.fromkeys(invocation["name"])
    if invocation["label"]:
        labelled = await Sandbox.list_with(labels=dict(invocation["label"]))
        names |= dict.fromkeys(handle.name for handle in labelled)
    return list(names)
