"""A sandbox by name, running or not: what the catalogue knew when the handle was made, and its lifecycle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from microsandbox.agent.connection import Connection
from microsandbox.errors import MicrosandboxError, NotSupportedYetError
from microsandbox.sandbox import lifecycle, pausing
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.sandbox import Sandbox, check_timeout, stop_result
from microsandbox.sandbox.stored_config import load_config
from microsandbox.store.sandboxes import SandboxRow
from microsandbox.types import SandboxStatus

if TYPE_CHECKING:
    import os

    from microsandbox.sandbox.logs import LogStream
    from microsandbox.snapshot.public import Snapshot
    from microsandbox.types import LogEntry, LogReadSource, SandboxMetrics, SandboxStopResult


class SandboxHandle:
    """Get one with ``await Sandbox.get(name)``. Its values are fixed: use refresh() for new ones."""

    def __init__(self, context: Context, row: SandboxRow) -> None:
        self._context = context
        self._row = row

    def __repr__(self) -> str:
        return f"SandboxHandle(name={self.name!r}, status={self.status!r})"

    @property
    def name(self) -> str:
        return self._row.name

    @property
    def status(self) -> str:
        """``running``, ``draining``, ``paused``, ``stopped`` or ``crashed``."""
        return SandboxStatus(self._row.status.lower())

    @property
    def config_json(self) -> str:
        """The stored configuration, as JSON."""
        return self._row.config

    def config(self) -> dict[str, Any]:
        """The stored configuration."""
        values: dict[str, Any] = json.loads(self._row.config)
        return values

    @property
    def created_at(self) -> float | None:
        """Milliseconds since the epoch."""
        return self._row.created_at * 1000

    @property
    def updated_at(self) -> float | None:
        """Milliseconds since the epoch."""
        return self._row.updated_at * 1000

    async def refresh(self) -> SandboxHandle:
        """A new handle. Raises SandboxNotFoundError when the sandbox was removed."""
        return SandboxHandle(self._context, self._context.sandboxes.get(self.name))

    async def start(self, *, detached: bool = False) -> Sandbox:
        """Boot it again. Raises SandboxStillRunningError, BootError."""
        from microsandbox.sandbox import creation

        return await creation.start(self._context, self.name, detached=detached)

    async def connect(self, timeout: float | None = None) -> Sandbox:
        """Connect to it within ``timeout`` seconds (default 10) without owning its life."""
        check_timeout(timeout)
        if self._row.status.terminal:
            raise MicrosandboxError(
                f"sandbox '{self.name}' is not running (status: {self._row.status.value})"
            )
        connection = await Connection.open(
            self._context.home.sandbox(self.name).agent_socket,
            timeout=lifecycle.CONNECT_TIMEOUT if timeout is None else timeout,
        )
        return Sandbox(self._context, self._row, load_config(self._row.config), connection, None)

    async def pause(self) -> None:
        """Stop its processors until resume(). Raises SandboxNotRunningError. Fine if it is paused."""
        await pausing.pause(self._context, self.name)

    async def resume(self) -> None:
        """Let it go on. Raises SandboxNotRunningError. Fine if it runs."""
        await pausing.resume(self._context, self.name)

    async def stop(self, timeout: float | None = None) -> None:
        """Power off; kill after ``timeout`` seconds (default 10, 0 kills at once)."""
        check_timeout(timeout)
        await lifecycle.stop(self._context, self.name, timeout)

    async def kill(self, timeout: float | None = None) -> None:
        """End it now and wait up to ``timeout`` seconds (default 5)."""
        check_timeout(timeout)
        await lifecycle.kill(self._context, self.name, timeout)

    async def request_stop(self) -> None:
        await lifecycle.request_stop(self._context, self.name)

    async def request_kill(self) -> None:
        lifecycle.request_kill(self._context, self.name)

    async def request_drain(self) -> None:
        lifecycle.request_drain(self._context, self.name)

    async def wait_until_stopped(self) -> SandboxStopResult:
        observed = await lifecycle.wait_until_stopped(self._context, self.name)
        return stop_result(observed, None, None, "refreshed runtime state")

    async def remove(self) -> None:
        """Delete it. Raises SandboxStillRunningError."""
        await lifecycle.remove(self._context, self.name)

    async def metrics(self) -> SandboxMetrics:
        """The latest sample of its run. Raises MetricsDisabledError, MetricsUnavailableError."""
        from microsandbox.metrics.public import latest

        return await latest(self._context, self.name)

    # what it printed

    async def logs(
        self,
        tail: int | None = None,
        since_ms: float | None = None,
        until_ms: float | None = None,
        sources: Sequence[LogReadSource] | None = None,
    ) -> list[LogEntry]:
        """What commands printed so far, in the order of time; the last ``tail`` entries of that.

        Times are in milliseconds since the epoch, ``until_ms`` itself is excluded. ``sources`` are
        ``stdout``, ``stderr`` and ``output`` (of terminals), which are meant by default, ``system``, ``all``.
        Raises SandboxNotFoundError.
        """
        from microsandbox.sandbox.logs import read_logs

        return await read_logs(
            self._context, self.name, tail=tail, since_ms=since_ms, until_ms=until_ms, sources=sources
        )

    async def log_stream(
        self,
        sources: Sequence[LogReadSource] | None = None,
        since_ms: float | None = None,
        from_cursor: str | None = None,
        until_ms: float | None = None,
        follow: bool = False,
    ) -> LogStream:
        """The same as they are read, and with ``follow`` those to come, until the sandbox is removed.

        ``from_cursor`` is the ``cursor`` of an entry of the same sources, to go on behind it.
        Raises ValueError, LogCursorError, SandboxNotFoundError.
        """
        from microsandbox.sandbox.logs import open_log_stream

        return open_log_stream(
            self._context,
            self.name,
            sources=sources,
            since_ms=since_ms,
            from_cursor=from_cursor,
            until_ms=until_ms,
            follow=follow,
        )

    # later releases

    async def snapshot(self, name: str) -> Snapshot:
        raise NotSupportedYetError("snapshots")

    async def snapshot_to(self, path: str | os.PathLike[str]) -> Snapshot:
        raise NotSupportedYetError("snapshots")
