"""A running sandbox, connected: commands, files, and the end of its life."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, Unpack

from microsandbox.agent.connection import Connection
from microsandbox.agent.protocol import MessageType, encode
from microsandbox.arguments import parameter, seconds, text, text_map
from microsandbox.errors import MicrosandboxError, NotSupportedYetError
from microsandbox.runtime.process import ProcessHandle
from microsandbox.sandbox import lifecycle, owned
from microsandbox.sandbox.awaitable import AwaitableFlag, AwaitableText
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.options import CreateKeywords, SandboxConfig
from microsandbox.store.sandboxes import SandboxRow
from microsandbox.types import SandboxStatus

if TYPE_CHECKING:
    from microsandbox.metrics.public import MetricsStream
    from microsandbox.sandbox.exec import ExecHandle
    from microsandbox.sandbox.exec_options import ExecKeywords, ExecOptions
    from microsandbox.sandbox.fs import SandboxFsOps
    from microsandbox.sandbox.handle import SandboxHandle
    from microsandbox.sandbox.logs import LogStream
    from microsandbox.sandbox.pull_session import PullSession
    from microsandbox.sandbox.ssh import SandboxSshOps
    from microsandbox.types import ExecOutput, LogEntry, LogReadSource, SandboxMetrics, SandboxStopResult


class Sandbox:
    """A virtual machine that runs an image. Make one with ``await Sandbox.create(name, image=...)``.

    As an async context manager it is killed and removed at the end of the block. A sandbox that is
    attached (the default) ends with this process; ``detach()`` lets it live on.
    """

    def __init__(
        self,
        context: Context,
        row: SandboxRow,
        config: SandboxConfig,
        connection: Connection,
        process: ProcessHandle | None,
    ) -> None:
        self._context = context
        self._row = row
        self._config = config
        self._connection = connection
        self._process = process
        self._consumed = False

    # making and finding

    @staticmethod
    async def create(name: str, **options: Unpack[CreateKeywords]) -> Sandbox:
        """Create a sandbox and return when it takes commands.

        ``image=`` is required; ``memory`` is in MiB, durations are in seconds. All keywords are listed in
        docs/python.md. Raises SandboxAlreadyExistsError, InvalidConfigError, ImageError, BootError.
        """
        from microsandbox.sandbox import creation
        from microsandbox.sandbox.options import parse_create

        context = Context.current()
        return await creation.create(context, parse_create(name, options, context.home))

    @staticmethod
    def create_with_progress(name: str, **options: Unpack[CreateKeywords]) -> PullSession:
        """As create(), in the background, with the events of the image pull to follow."""
        from microsandbox.sandbox.options import parse_create
        from microsandbox.sandbox.pull_session import PullSession

        context = Context.current()
        return PullSession(context, parse_create(name, options, context.home))

    @staticmethod
    async def start(name: str, *, detached: bool = False) -> Sandbox:
        """Boot a stopped or crashed sandbox again.

        Raises SandboxNotFoundError, SandboxStillRunningError, BootError.
        """
        from microsandbox.sandbox import creation

        return await creation.start(Context.current(), parameter("name", text, name), detached=detached)

    @staticmethod
    async def get(name: str) -> SandboxHandle:
        """The handle of a sandbox, running or not. Raises SandboxNotFoundError."""
        from microsandbox.sandbox.handle import SandboxHandle
        from microsandbox.store.home import validate_name

        context = Context.current()
        return SandboxHandle(context, context.sandboxes.get(validate_name(parameter("name", text, name))))

    @staticmethod
    async def list() -> list[SandboxHandle]:
        """All sandboxes, newest first."""
        return await Sandbox.list_with()

    @staticmethod
    async def list_with(*, labels: Mapping[str, str] | None = None) -> builtins.list[SandboxHandle]:
        """The sandboxes that carry all of these labels, newest first."""
        from microsandbox.sandbox.handle import SandboxHandle

        context = Context.current()
        wanted = parameter("labels", text_map, labels or {})
        return [SandboxHandle(context, row) for row in context.sandboxes.list(wanted)]

    @staticmethod
    async def remove(name: str) -> None:
        """Delete a stopped sandbox, its writable layer and its logs.

        Raises SandboxNotFoundError, SandboxStillRunningError.
        """
        from microsandbox.store.home import validate_name

        await lifecycle.remove(Context.current(), validate_name(parameter("name", text, name)))

    # what it is

    @property
    def name(self) -> AwaitableText:
        self._check_usable()
        return AwaitableText(self._row.name)

    @property
    def owns_lifecycle(self) -> AwaitableFlag:
        """Whether this object holds the sandbox's process, or is only connected to it."""
        self._check_usable()
        return AwaitableFlag(self._process is not None)

    @property
    def fs(self) -> SandboxFsOps:
        """The guest's files."""
        from microsandbox.sandbox.fs import SandboxFsOps

        self._check_usable()
        return SandboxFsOps(self._connection)

    # commands

    async def exec(
        self,
        cmd: str,
        args: Any = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Any = None,
        tty: bool = False,
        rlimits: Iterable[Any] | None = None,
    ) -> ExecOutput:
        """Run a command to its end and return its output.

        ``args`` is a list, or a mapping of options. ``timeout`` is in seconds. Raises ExecTimeoutError,
        ExecFailedError when the command cannot be started.
        """
        from microsandbox.sandbox.exec_options import parse_exec

        options = parse_exec(
            cmd, args, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits
        )
        return await self._run(options)

    async def exec_stream(
        self,
        cmd: str,
        args: Any = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Any = None,
        tty: bool = False,
        rlimits: Iterable[Any] | None = None,
    ) -> ExecHandle:
        """Start a command and return at once; iterate over the handle for its output as it happens."""
        from microsandbox.sandbox.exec_options import parse_exec

        options = parse_exec(
            cmd, args, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits
        )
        return await self._start(options)

    async def shell(self, script: str, **options: Unpack[ExecKeywords]) -> ExecOutput:
        """Run a script with the sandbox's shell; keywords as for exec()."""
        from microsandbox.sandbox.exec_options import parse_shell

        return await self._run(parse_shell(script, self._config.shell, options))

    async def shell_stream(self, script: str, **options: Unpack[ExecKeywords]) -> ExecHandle:
        """Start a script with the sandbox's shell; keywords as for exec_stream()."""
        from microsandbox.sandbox.exec_options import parse_shell

        return await self._start(parse_shell(script, self._config.shell, options))

    async def attach(
        self,
        cmd: str,
        args: builtins.list[str] | None = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        detach_keys: str | None = None,
    ) -> int:
        """Run a command on this program's terminal, which is in raw mode meanwhile, and return its exit code.

        -1 when the user has typed ``detach_keys`` (default ``ctrl-]``), or the terminal is gone: the command
        goes on as long as this object. Raises MicrosandboxError without a terminal, ExecFailedError.
        """
        from microsandbox.sandbox.attach import attach
        from microsandbox.sandbox.detach_keys import DEFAULT, DetachKeys
        from microsandbox.sandbox.exec_options import exec_request, parse_exec
        from microsandbox.types import Stdin

        if args is not None and not isinstance(args, builtins.list):
            raise TypeError("args must be a list of strings")
        options = parse_exec(cmd, args, cwd=cwd, user=user, env=env, stdin=Stdin.pipe(), tty=True)
        keys = DetachKeys(DEFAULT if detach_keys is None else parameter("detach_keys", text, detach_keys))
        self._check_usable()
        return await attach(self._connection, exec_request(options, self._config), options, keys)

    async def attach_shell(self) -> int:
        """As attach(), with the sandbox's shell."""
        from microsandbox.sandbox.exec_options import DEFAULT_SHELL

        return await self.attach(self._config.shell or DEFAULT_SHELL)

    async def _start(self, options: ExecOptions) -> ExecHandle:
        from microsandbox.sandbox import exec
        from microsandbox.sandbox.exec_options import exec_request

        self._check_usable()
        return await exec.start(self._connection, exec_request(options, self._config), options)

    async def _run(self, options: ExecOptions) -> ExecOutput:
        from microsandbox.sandbox import exec

        return await exec.run(await self._start(options), options.timeout)

    # what it uses

    async def metrics(self) -> SandboxMetrics:
        """The latest sample of this run. Raises MetricsDisabledError, MetricsUnavailableError."""
        from microsandbox.metrics.public import latest

        self._check_usable()
        return await latest(self._context, self._row.name)

    async def metrics_stream(self, interval: float = 1.0) -> MetricsStream:
        """The latest sample at once, and then every ``interval`` seconds: ``async for``."""
        from microsandbox.metrics.public import MetricsStream

        self._check_usable()
        return MetricsStream.of(
            self._context, self._row.name, parameter("interval", lambda v: seconds(v, "interval"), interval)
        )

    # its life

    async def pause(self) -> None:
        """Stop its processors until resume(): it uses no CPU time, and its commands stand still.

        Raises SandboxNotRunningError. Fine if it is paused.
        """
        from microsandbox.sandbox import pausing

        self._check_usable()
        await pausing.pause(self._context, self._row.name)

    async def resume(self) -> None:
        """Let it go on, with the right time of day. Raises SandboxNotRunningError. Fine if it runs."""
        from microsandbox.sandbox import pausing

        self._check_usable()
        await pausing.resume(self._context, self._row.name)

    async def stop(self, timeout: float | None = None) -> None:
        """Power off; kill after ``timeout`` seconds (default 10, 0 kills at once)."""
        self._check_usable()
        check_timeout(timeout)
        if self._process is None:
            await lifecycle.stop(self._context, self._row.name, timeout)
        else:
            await owned.stop(self._context, self._row, self._process, self.request_stop, timeout)

    async def kill(self, timeout: float | None = None) -> None:
        """End it now, without a flush, and wait up to ``timeout`` seconds (default 5)."""
        self._check_usable()
        check_timeout(timeout)
        if self._process is None:
            await lifecycle.kill(self._context, self._row.name, timeout)
        else:
            await owned.kill(self._context, self._row, self._process, timeout)

    async def request_stop(self) -> None:
        """Ask for a power-off and return. Raises AgentClientError when the connection is gone."""
        self._check_usable()
        await self._connection.send(encode(0, MessageType.SHUTDOWN))

    async def request_kill(self) -> None:
        """Kill it and return."""
        self._check_usable()
        if self._process is None:
            lifecycle.request_kill(self._context, self._row.name)
        else:
            owned.request_kill(self._context, self._row, self._process)

    async def request_drain(self) -> None:
        """Let running commands finish, refuse new ones, then power off."""
        self._check_usable()
        if self._process is None:
            lifecycle.request_drain(self._context, self._row.name)
        else:
            owned.request_drain(self._process)

    async def wait_until_stopped(self) -> SandboxStopResult:
        """Return when it has ended, however that comes about."""
        self._check_usable()
        if self._process is None:
            observed = await lifecycle.wait_until_stopped(self._context, self._row.name)
            return stop_result(observed, None, None, "refreshed runtime state")
        status = await self._process.wait()
        observed = lifecycle.observe(self._context, self._row)
        return stop_result(observed, status.code, status.signal, "owned process handle")

    async def detach(self) -> None:
        """Let the sandbox live on without this process; the object is consumed. Idempotent."""
        if self._consumed:
            return
        self._consumed = True
        if self._process is not None:
            self._process.disarm()
        self._connection.close()

    def release(self) -> None:
        """Drop the sandbox now, as garbage collection would: it is shut down unless it was detached."""
        if self._consumed:
            return
        self._consumed = True
        if self._process is not None:
            self._process.close()
        self._connection.close()

    async def __aenter__(self) -> Self:
        self._check_usable()
        return self

    async def __aexit__(self, *_: object) -> bool:
        if self._consumed:
            return False
        with suppress(MicrosandboxError, OSError):
            await self.kill()
        with suppress(MicrosandboxError, OSError):
            await lifecycle.remove(self._context, self._row.name, only=self._row)
        self._consumed = True
        self._connection.close()
        return False

    def _check_usable(self) -> None:
        if self._consumed:
            raise RuntimeError("sandbox has been consumed")

    # what it printed

    async def logs(
        self,
        tail: int | None = None,
        since_ms: float | None = None,
        until_ms: float | None = None,
        sources: Sequence[LogReadSource] | None = None,
    ) -> builtins.list[LogEntry]:
        """What commands printed so far, in the order of time; the last ``tail`` entries of that.

        Times are in milliseconds since the epoch, ``until_ms`` itself is excluded. ``sources`` are
        ``stdout``, ``stderr`` and ``output`` (of terminals), which are meant by default, ``system``, ``all``.
        Raises SandboxNotFoundError.
        """
        from microsandbox.sandbox.logs import read_logs

        self._check_usable()
        return await read_logs(
            self._context, self._row.name, tail=tail, since_ms=since_ms, until_ms=until_ms, sources=sources
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

        self._check_usable()
        return open_log_stream(
            self._context,
            self._row.name,
            sources=sources,
            since_ms=since_ms,
            from_cursor=from_cursor,
            until_ms=until_ms,
            follow=follow,
        )

    # later releases

    def ssh(self) -> SandboxSshOps:
        raise NotSupportedYetError("ssh")


def stop_result(
    observed: lifecycle.Observed, code: int | None, signal: int | None, source: str
) -> SandboxStopResult:
    from microsandbox.types import SandboxStopResult

    return SandboxStopResult(
        name=observed.name,
        status=SandboxStatus(observed.status.lower()),
        exit_code=code,
        signal=signal,
        observed_at=observed.at * 1000,
        source=source,
    )


def check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout >= 0:
        raise ValueError("timeout must be non-negative")
