"""Running the template builder as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

from microsandbox.errors import TemplateError
from microsandbox.interpreter import module_command, module_environment
from microsandbox.tools import last_lines

_BUILDER = "microsandbox.runtime.template_builder"
#: Seconds a builder has to take back what it began.
_END_GRACE = 10.0


def builder_command(arguments: Sequence[str]) -> list[str]:
    return module_command(_BUILDER, *arguments)


async def build(arguments: Sequence[str]) -> str:
    """Run a builder to its end: the key of the template. When cancelled, it is ended and leaves nothing.

    Raises TemplateError with the builder's reason.
    """
    process = await asyncio.create_subprocess_exec(
        *builder_command(arguments),
        env=module_environment(),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
    )
    try:
        stdout, stderr = await process.communicate()
    except BaseException:
        await asyncio.shield(_end(process))
        raise
    if process.returncode != 0:
        reason = last_lines(stderr) or f"its builder ended with status {process.returncode}"
        raise TemplateError(reason)
    return stdout.decode().strip()


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_GRACE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def build_in_background(arguments: Sequence[str]) -> int:
    """Start a builder that may outlive this process; its exit status. When cancelled, it goes on."""
    argv = builder_command(["--background", *arguments])
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    pid = os.posix_spawn(  # noqa: ASYNC221 - it does not wait
        argv[0],
        argv,
        module_environment(),
        file_actions=null,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE),
    )
    loop = asyncio.get_running_loop()
    with os.fdopen(os.pidfd_open(pid), "rb", buffering=0) as pidfd:
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # noqa: ASYNC222 - it has ended
