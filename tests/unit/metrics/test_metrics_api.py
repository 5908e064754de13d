"""What callers get, from a real catalogue and registry; this process stands for the supervisor."""

import asyncio
import time

import pytest

from microsandbox import (
    MetricsDisabledError,
    MetricsUnavailableError,
    Sandbox,
    SandboxNotFoundError,
    all_sandbox_metrics,
)
from microsandbox.metrics.public import MetricsStream, latest
from microsandbox.metrics.registry import Entry, Registry, Sample
from microsandbox.sandbox.boot import reserve_metrics
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.stored_config import dump_config
from microsandbox.store.processes import ProcessIdentity
from microsandbox.store.sandboxes import Reason, Status

STARTED = 1_700_000_000_000


class Running:
    """A sandbox whose supervisor this process is."""

    def __init__(self, context, name="box", **changes):
        self.context = context
        self.config = SandboxConfig(name, OciImage("a", 64), memory_mib=256, **changes)
        self.row = context.sandboxes.create(name, dump_config(self.config), {}, None)
        self.reservation = reserve_metrics(context, self.row, self.config)
        context.sandboxes.take_over(self.row.run_id)

    def activate(self):
        self.entry = Entry(
            self.row.id, self.row.run_id, ProcessIdentity.current(), self.row.name, 256 << 20, STARTED
        )
        with Registry.open(self.reservation.path) as registry:
            registry.activate(self.reservation.slot, self.entry)
        return self

    def sample(self, number=1):
        with Registry.open(self.reservation.path) as registry:
            values = Sample(STARTED + 1500, number, 150.0, 3, None, 5, 6, 7, 8, 9)
            registry.write(self.reservation.slot, self.entry, values)
        return self

    def end(self):
        with Registry.open(self.reservation.path) as registry:
            registry.retire(self.reservation.slot)
        self.context.sandboxes.end_run(self.row.id, self.row.run_id, Status.STOPPED, Reason.COMPLETED)


@pytest.fixture
def running(context):
    return Running(context).activate()


async def test_the_latest_sample(context, running):
    running.sample()
    found = await (await Sandbox.get("box")).metrics()
    assert found == await latest(context, "box")
    assert (found.cpu_percent, found.vcpu_time_ns) == (150.0, 1)
    assert (found.memory_bytes, found.memory_available_bytes) == (3, None)
    assert (found.memory_host_resident_bytes, found.memory_limit_bytes) == (5, 256 << 20)
    assert (found.disk_read_bytes, found.disk_write_bytes) == (6, 7)
    assert (found.net_rx_bytes, found.net_tx_bytes) == (8, 9)
    assert (found.uptime_ms, found.timestamp_ms) == (1500, float(STARTED + 1500))
    assert await all_sandbox_metrics() == {"box": found}


async def test_the_first_sample_is_waited_for(context, running):
    waiting = asyncio.ensure_future(latest(context, "box"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert await all_sandbox_metrics() == {}
    running.sample()
    assert (await asyncio.wait_for(waiting, 2)).vcpu_time_ns == 1


async def test_a_first_sample_that_does_not_come_is_waited_for_three_intervals(context):
    Running(context, metrics_sample_interval_ms=200).activate()
    started = time.monotonic()
    with pytest.raises(MetricsUnavailableError, match=r"^metrics unavailable for sandbox: box$"):
        await latest(context, "box")
    assert 0.5 < time.monotonic() - started < 2


async def test_a_sandbox_that_does_not_run_has_no_metrics(context, running):
    running.sample().end()
    with pytest.raises(MetricsUnavailableError, match=r"^metrics unavailable for sandbox: box$"):
        await latest(context, "box")
    assert await all_sandbox_metrics() == {}
    with pytest.raises(SandboxNotFoundError):
        await latest(context, "nobody")


@pytest.mark.parametrize("off", [{"metrics_sample_interval_ms": 0}, {"disable_metrics_sample": True}])
async def test_a_sandbox_without_sampling_says_so(context, off):
    disabled = Running(context, **off)
    assert disabled.reservation is None and not context.home.metrics_registry.exists()
    with pytest.raises(MetricsDisabledError, match=r"^metrics disabled for sandbox: box$"):
        await latest(context, "box")
    stream = MetricsStream.of(context, "box", 0)
    with pytest.raises(MetricsDisabledError):
        await anext(stream)
    assert [sample async for sample in stream] == []
    assert await all_sandbox_metrics() == {}


async def test_a_slot_of_another_process_is_not_the_sandboxes(context, running):
    """A home that was deleted and made again has runs of the same numbers."""
    running.sample()
    with Registry.open(running.reservation.path) as registry:
        me = ProcessIdentity.current()
        other = Entry(1, running.row.run_id, ProcessIdentity(me.pid, me.started + 1), "box", 1, 1)
        registry.retire(running.reservation.slot)
        slot = registry.reserve(other)
        registry.activate(slot, other)
        registry.write(slot, other, Sample(1, 1, None, None, None, None, 1, 1))
    assert await all_sandbox_metrics() == {}


async def test_a_stream_has_a_sample_at_once_and_then_at_its_interval(context, running):
    running.sample()
    stream = MetricsStream.of(context, "box", 0.1)
    started, times = time.monotonic(), []
    async for sample in stream:
        times.append(time.monotonic() - started)
        running.sample(sample.vcpu_time_ns + 1)
        if len(times) == 4:
            break
    assert sample.vcpu_time_ns == 4
    assert times[0] < 0.09 and 0.28 < times[3] < 1


async def test_a_stream_repeats_the_last_sample_of_a_stopped_sandbox_while_its_slot_is_there(
    context, running
):
    running.sample(3)
    stream = MetricsStream.of(context, "box", 0)
    assert (await anext(stream)).vcpu_time_ns == 3
    running.sample(4).end()
    assert [(await anext(stream)).vcpu_time_ns for _ in range(3)] == [4, 4, 4]
    context.home.metrics_registry.unlink()
    for _ in range(2):
        with pytest.raises(MetricsUnavailableError):
            await anext(stream)
    row = context.sandboxes.begin_start("box")
    running.row, running.reservation = row, reserve_metrics(context, row, running.config)
    context.sandboxes.take_over(row.run_id)
    running.activate().sample(9)
    assert (await anext(stream)).vcpu_time_ns == 9


async def test_a_damaged_registry_is_no_metrics(context, running):
    running.sample()
    context.home.metrics_registry.write_bytes(b"nonsense")
    assert await all_sandbox_metrics() == {}


def test_a_sandbox_runs_without_metrics_when_there_is_no_place_for_them(context, caplog):
    context.home.metrics_registry.mkdir()
    try:
        assert Running(context).reservation is None
    finally:
        context.home.metrics_registry.rmdir()
    assert "sandbox 'box' runs without metrics" in caplog.text


def test_the_end_of_a_run_frees_the_slot_of_a_supervisor_that_was_killed(context, running):
    with Registry.open(running.reservation.path) as registry:
        me = ProcessIdentity.current()
        dead = Entry(1, 9, ProcessIdentity(me.pid, me.started - 1), "box", 1)
        registry.reserve(dead)
        running.end()
        assert [record.entry.run_id for record in registry.records()] == [running.row.run_id]


async def test_an_interval_is_a_time():
    with pytest.raises(TypeError, match="argument 'interval'"):
        await Sandbox.metrics_stream(_Usable(), "1")
    with pytest.raises(ValueError, match="interval must be non-negative"):
        await Sandbox.metrics_stream(_Usable(), -1)


class _Usable:
    _context, _row = None, type("Row", (), {"name": "box"})

    def _check_usable(self):
        return None
