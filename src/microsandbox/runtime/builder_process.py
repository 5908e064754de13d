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


async def build_in_background(arguments: Sequence[str]) -> bool:
    """Start a builder that outlives this process; whether it built. When cancelled, it goes on.

    Only for single-threaded processes.
    """
    pipe, output = os.pipe()
    try:
        _start(builder_command(["--background", *arguments]), output)
    finally:
        os.close(output)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb")
    )
    try:
        return await reader.read() != b""
    finally:
        transport.close()


def _start(argv: list[str], output: int) -> None:
    """Start it as nobody's child: whoever kills a sandbox kills all children of its supervisor."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(output, 1)
            os.closerange(3, 1 << 20)
            os.posix_spawn(
                argv[0],
                argv,
                module_environment(),
                file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 2)],
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE),
            )
        finally:
            os._exit(0)
    os.waitpid(child, 0)
