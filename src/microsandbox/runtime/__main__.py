"""``python -m microsandbox.runtime``: the process that owns one sandbox's virtual machine.

The order is what makes it fast: the machine is started before asyncio and the relay are imported, so that
QEMU and the guest's kernel come up meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import stat
import sys
from pathlib import Path

from microsandbox.errors import MicrosandboxError
from microsandbox.runtime.plan import PLAN_FD, WATCHDOG_FD, LaunchPlan
from microsandbox.store.files import make_private

_BACKLOG = 128


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="msb sandbox", description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="the sandbox, for those who read process lists")
    parser.add_argument("--parent-watch-fd", type=int)
    arguments = parser.parse_args()
    watch = arguments.parent_watch_fd
    if watch is not None and (watch != WATCHDOG_FD or not _is_fifo(watch)):
        parser.error(f"--parent-watch-fd must be {WATCHDOG_FD} and a pipe")
    return arguments


def _is_fifo(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


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
    arguments = _arguments()
    plan = LaunchPlan.from_fd(PLAN_FD)
    os.chdir("/")
    listener = _listen(Path(plan.agent_socket))
    _announce()

    from microsandbox.runtime.log_files import RotatingFile, RuntimeLog

    file = RotatingFile(plan.logs / "runtime.log")
    os.dup2(file.fd, 2)
    logging.basicConfig(level=(plan.log_level or "info").upper(), handlers=[RuntimeLog(file)])
    from microsandbox.runtime.launch import launch_machine, run_supervisor

    try:
        machine = launch_machine(plan)
    except MicrosandboxError as error:
        return run_supervisor(plan, error, listener, arguments.parent_watch_fd)
    return run_supervisor(plan, machine, listener, arguments.parent_watch_fd)


if __name__ == "__main__":
    sys.exit(main())
