"""Running the template builder as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

from microsandbox.interpreter import module_command, module_environment

_BUILDER = "microsandbox.runtime.template_builder"


def builder_command(arguments: Sequence[str]) -> list[str]:
    return module_command(_BUILDER, *arguments)


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
