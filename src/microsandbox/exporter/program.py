"""``msb-metrics``: the process, from its command line to its exit code.

SIGINT and SIGTERM end it in good order, with a last export; the second one ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import NoReturn

from microsandbox.cli import output
from microsandbox.cli.failures import FAILURE, USAGE, report
from microsandbox.errors import MicrosandboxError, PrerequisiteError
from microsandbox.exporter import diagnostics
from microsandbox.exporter.arguments import ArgumentsError, Mode, Settings, parse
from microsandbox.exporter.collection import Collector
from microsandbox.exporter.labels import Labels
from microsandbox.exporter.pipeline import Exporter, ExportError, Pipeline
from microsandbox.metrics.registry import RegistryError
from microsandbox.store.home import Home

log = logging.getLogger(__name__)

#: As a shell spells a program that SIGPIPE ended.
_BROKEN_PIPE = 141


def program() -> NoReturn:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(words: Sequence[str]) -> int:
    """Run until a signal; the exit code is 0, 1 for failures and 2 for a wrong command line."""
    try:
        settings = parse(words)
    except ArgumentsError as error:
        output.error(str(error), ["`msb-metrics --help` shows all options"])
        return USAGE
    diagnostics.begin(settings.log_level, settings.log_format, os.environ.get("RUST_LOG"))
    try:
        return asyncio.run(_run(settings))
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):  # of tasks, of which the first one to fail ends the others
        error = error.exceptions[0]
    if isinstance(error, (MicrosandboxError, OSError)):
        return report(error)
    output.error(
        f"{type(error).__name__}: {error}", ["this is a bug in msb-metrics; --log-level debug shows where"]
    )
    log.debug("where it was", exc_info=error)
    return FAILURE


async def _run(settings: Settings) -> int:
    home = Home.open(settings.home)
    labels = Labels(home.database, settings.excluded_labels) if settings.labels else None
    collector = Collector(home.metrics_registry, settings.max_sample_age, labels)
    stop = _stop_signals()
    if settings.mode is Mode.PROMETHEUS:
        return await _serve(settings.listen, collector, stop)
    delivery = settings.delivery
    pipeline = Pipeline(_exporter(settings), delivery.max_buffered, delivery.flush_interval)
    async with asyncio.TaskGroup() as group:
        group.create_task(_collect(collector, pipeline, delivery.collect_interval, stop))
        exporting = group.create_task(_export(pipeline, delivery.flush_interval, stop))
    return exporting.result()


def _stop_signals() -> asyncio.Event:
    """Set by the first signal; the second one has its default action."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    # Not those that a shell has its background jobs ignore.
    watched = [
        number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN
    ]

    def take() -> None:
        stop.set()
        for number in watched:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in watched:
        loop.add_signal_handler(number, take)
    return stop


def _exporter(settings: Settings) -> Exporter:
    """Raises PrerequisiteError, InvalidConfigError."""
    timeout = settings.delivery.export_timeout
    if settings.otel is None:
        from microsandbox.exporter.stdout import StdoutExporter

        return StdoutExporter(timeout)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its errors come back to us
    try:
        from microsandbox.exporter.otel import OtelExporter
    except ImportError as error:
        raise PrerequisiteError(
            f"msb-metrics otel needs OpenTelemetry ({error}); "
            "install it with: pip install 'microsandbox[otel]'"
        ) from error
    return OtelExporter(settings.otel, timeout)


async def _collect(collector: Collector, pipeline: Pipeline, interval: float, stop: asyncio.Event) -> None:
    """Collect at once and then at each interval."""
    trouble = ""
    async for _ in _ticks(interval, stop):
        try:
            collection = collector.collect()
            log.debug("collected %d sandboxes", len(collection.readings))
            pipeline.add(collection)
            trouble = ""
        except (RegistryError, OSError) as error:
            if str(error) != trouble:
                log.warning("cannot read the metrics registry: %s", error)
            trouble = str(error)


async def _export(pipeline: Pipeline, interval: float, stop: asyncio.Event) -> int:
    """Flush at each interval, less often while it fails, and at the end; returns the exit code."""
    try:
        while not await _stopped_within(interval, stop):
            interval = await pipeline.flush(stop)
        await pipeline.finish()
    except BrokenPipeError:
        stop.set()
        return _BROKEN_PIPE
    except ExportError as error:
        output.error(f"the last export failed: {error}", [f"{len(pipeline)} collections are lost"])
        return FAILURE
    return 0


async def _ticks(interval: float, stop: asyncio.Event) -> AsyncIterator[None]:
    """A tick at once and at each interval until ``stop``, late ones once; none while one is dealt with."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not await _stopped_within(due - loop.time(), stop):
        yield
        due = max(due + interval, loop.time())


async def _stopped_within(seconds: float, stop: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


async def _serve(listen: tuple[str, int], collector: Collector, stop: asyncio.Event) -> int:
    from microsandbox.exporter.endpoint import Endpoint, Unavailable
    from microsandbox.exporter.prometheus import CONTENT_TYPE, render

    def page() -> str:
        try:
            return render(collector.collect())
        except (RegistryError, OSError) as error:
            log.warning("cannot read the metrics registry: %s", error)
            raise Unavailable(f"cannot read the metrics registry: {error}") from error

    endpoint = Endpoint(listen, page, CONTENT_TYPE)
    try:
        async with endpoint:
            log.info("serving metrics at %s", endpoint.url)
            await stop.wait()
    except OSError as error:
        host, port = listen
        output.error(f"cannot listen at {host}:{port}: {error.strerror}", ["--listen takes another address"])
        return FAILURE
    return 0
