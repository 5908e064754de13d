"""The owner's hold on a supervisor: watch it, signal it, let it go."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import weakref
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from microsandbox.store.files import remove_tree

log = logging.getLogger(__name__)


class Reservation(Protocol):
    """A slot of the metrics registry that is ours until the supervisor activates it."""

    def release(self) -> None:
        """Give the slot back if nobody activated it; errors are its own to log."""


class ExitStatus(Struct, frozen=True):
    """How a process ended: ``code`` or ``signal``, the other is None."""

    code: int | None
    signal: int | None

    @classmethod
    def from_wait_status(cls, status: int) -> ExitStatus:
        code = os.waitstatus_to_exitcode(status)
        return cls(code, None) if code >= 0 else cls(None, -code)

    @property
    def success(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        return f"exit code {self.code}" if self.signal is None else f"signal {self.signal}"


class _Child:
    """A child process, reaped as soon as it ends while the loop that started it runs.

    One that outlives its loop, because it was let go, is reaped when the next one is started.
    """

    def __init__(self, pid: int) -> None:
        for other in [child for child in _unreaped if child.is_alone]:
            other.poll()
        self.pid = pid
        self.status: ExitStatus | None = None
        self.exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        try:
            self._loop.add_reader(self._pidfd, self.poll)
        except BaseException:
            os.close(self._pidfd)
            raise
        _unreaped.add(self)

    @property
    def is_alone(self) -> bool:
        """Whether nobody is told when it ends."""
        return self._loop.is_closed()

    def poll(self) -> ExitStatus | None:
        """Reap it if it has ended."""
        if self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else reaped it; nothing is known of how it ended
                pid, status = self.pid, 0
            if pid:
                self.status = ExitStatus.from_wait_status(status)
                if not self._loop.is_closed():
                    self._loop.remove_reader(self._pidfd)
                os.close(self._pidfd)
                _unreaped.discard(self)
                self.exited.set()
        return self.status

    def send(self, number: int) -> None:
        """Raises ProcessLookupError once it was reaped: the pid is no longer ours."""
        if self.poll() is not None:
            raise ProcessLookupError(3, "No such process")
        signal.pidfd_send_signal(self._pidfd, number)


#: What has not been seen to end; as long as it is here its descriptor is open.
_unreaped: set[_Child] = set()


class _Held(Struct):
    """What dropping a handle gives up; apart from the handle so that a finalizer can have it."""

    child: _Child
    watchdog: int | None
    reservation: Reservation | None
    staging: Path | None
    disarmed: bool = False

    def drop(self) -> None:
        """The end of a handle nobody disarmed: the supervisor notices the closed pipe, or gets SIGTERM."""
        if not self.disarmed:
            self.release_reservation()
            if self.watchdog is None and self.child.poll() is None:
                try:
                    self.child.send(signal.SIGTERM)
                except ProcessLookupError:
                    log.debug("supervisor %d ended by itself", self.child.pid)
        self.close_watchdog()
        if self.staging is not None:
            remove_tree(self.staging)

    def close_watchdog(self) -> None:
        if self.watchdog is not None:
            os.close(self.watchdog)
            self.watchdog = None

    def release_reservation(self) -> None:
        if self.reservation is not None:
            self.reservation.release()
            self.reservation = None


def _write_detach_byte(watchdog: int) -> None:
    """Also in a program that has SIGPIPE end it, which Python ignores unless told otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        os.write(watchdog, b"\x01")
    except BrokenPipeError:
        if signal.SIGPIPE not in before:
            signal.sigtimedwait({signal.SIGPIPE}, 0)  # the one that it brought, unless that is ignored
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ProcessHandle:
    """A running supervisor, held by its owner.

    Dropping the handle of an attached sandbox (or the owner's death) closes the watchdog pipe, which makes
    the supervisor shut the guest down; a detached one that was not disarmed gets SIGTERM. ``disarm()``
    ends the hold: the sandbox lives on. Raises OSError when the process cannot be watched; it is still the
    caller's then.
    """

    def __init__(
        self,
        pid: int,
        sandbox_name: str,
        *,
        watchdog: int | None,
        reservation: Reservation | None = None,
        staging: Path | None = None,
    ) -> None:
        self.pid = pid
        self.sandbox_name = sandbox_name
        self._held = _Held(_Child(pid), watchdog, reservation, staging)
        self._finalizer = weakref.finalize(self, self._held.drop)
        # At the owner's exit the kernel closes the pipe of an attached one; a detached one lives on.
        self._finalizer.atexit = False
        _all.add(self)

    def kill(self) -> None:
        """SIGKILL. Raises ProcessLookupError once the process is gone."""
        self._held.child.send(signal.SIGKILL)

    def drain(self) -> None:
        """Ask for a drain (SIGUSR1). Raises ProcessLookupError once the process is gone."""
        self._held.child.send(signal.SIGUSR1)

    def terminate(self) -> None:
        """SIGTERM. Raises ProcessLookupError once the process is gone."""
        self._held.child.send(signal.SIGTERM)

    async def wait(self) -> ExitStatus:
        """The exit status; can be cancelled and repeated. Releases the metrics reservation once."""
        child = self._held.child
        while (status := child.poll()) is None:
            await child.exited.wait()
        self._held.release_reservation()
        return status

    def try_wait(self) -> ExitStatus | None:
        """The exit status if it has ended."""
        return self._held.child.poll()

    def disarm(self) -> None:
        """Let the sandbox live on without this process; idempotent."""
        held = self._held
        held.disarmed = True
        held.staging = None
        if held.watchdog is not None:
            try:
                _write_detach_byte(held.watchdog)
            except OSError as error:  # the supervisor has ended: there is nothing to detach from
                log.debug("failed to write parent-watch detach byte: %s", error)
            held.close_watchdog()

    def close(self) -> None:
        """Drop the handle now rather than when it is collected."""
        self._finalizer()

    def forget(self) -> None:
        """For a fork of the owner, which owns nothing, and must not keep the watchdog pipe open."""
        self._finalizer.detach()
        self._held.close_watchdog()


_all: weakref.WeakSet[ProcessHandle] = weakref.WeakSet()


def _forget_all() -> None:
    _unreaped.clear()
    for handle in list(_all):
        handle.forget()


os.register_at_fork(after_in_child=_forget_all)
