"""``python -m microsandbox.runtime``: the process that owns one sandbox's virtual machine.

    --name NAME                 the sandbox, for those who read process lists
    --parent-watch-fd 97        a pipe whose end means that the owner is gone

What to do arrives as a LaunchPlan on descriptor 98. The order is what makes it fast: the machine is
started before asyncio, logging and the relay are imported, so that QEMU and the guest's kernel come up
meanwhile.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path

from microsandbox.runtime.launch import launch_or_error, run_supervisor
from microsandbox.runtime.plan import PLAN_FD, WATCHDOG_FD, LaunchPlan
from microsandbox.store.files import make_private

_BACKLOG = 128
_ALL_DESCRIPTORS = 1 << 20


def _watchdog(arguments: list[str]) -> int | None:
    """The descriptor to watch, if any. Exits with status 2 when it is not what it should be."""
    if "--parent-watch-fd" not in arguments:
        return None
    given = arguments[arguments.index("--parent-watch-fd") + 1 :][:1]
    if given != [str(WATCHDOG_FD)] or not _is_pipe(WATCHDOG_FD):
        print(f"msb sandbox: --parent-watch-fd must be {WATCHDOG_FD} and a pipe", file=sys.stderr)
        sys.exit(2)
    return WATCHDOG_FD


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def _close_all_but(kept: set[int]) -> None:
    """What the owner's program left inheritable (its sockets, perhaps) must not live as long as we do."""
    ordered = sorted(kept)
    for fd, following in zip(ordered, [*ordered[1:], _ALL_DESCRIPTORS], strict=True):
        os.closerange(fd + 1, following)


def _listen(path: Path) -> socket.socket:
    """Bind the relay socket. Early clients wait in its backlog until the guest is ready."""
    make_private(path.parent)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(_BACKLOG)
    return listener


def _announce() -> None:
    """The one line on standard output; it is closed to everything else from then on."""
    os.write(1, b'{"pid":%d}\n' % os.getpid())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main() -> int:
    # A terminal's Ctrl-C and hang-up go to the owner's whole process group; the owner decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    watchdog = _watchdog(sys.argv[1:])
    plan = LaunchPlan.from_fd(PLAN_FD).with_mark("plan read")
    _close_all_but({0, 1, 2, watchdog or 0, *(disk.fd for disk in plan.disks)})
    for disk in plan.disks:
        os.set_inheritable(disk.fd, False)  # a lock lasts as long as a copy is open: only QEMU gets one
    os.chdir("/")
    agent_socket = Path(plan.agent_socket)
    listener = _listen(agent_socket)
    bound = agent_socket.stat()
    try:
        _announce()
        machine = launch_or_error(plan)
        return run_supervisor(plan.with_mark("QEMU started"), machine, listener, watchdog)
    except BrokenPipeError:  # the owner has died already, and nobody reads the line
        return 1
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(bound, agent_socket.stat()):  # not that of a sandbox that replaced this one
                agent_socket.unlink()


if __name__ == "__main__":
    sys.exit(main())
