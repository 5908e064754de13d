"""Metrics of real machines: what is measured, what is left behind, what sampling costs."""

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from microsandbox import MetricsUnavailableError, Sandbox, all_sandbox_metrics
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

MSB = [sys.executable, "-m", "microsandbox.cli"]


def records(home, name):
    return [record for record in audit.metrics(home) if record.entry.name == name]


def cpu_time(pid):
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


async def test_what_a_guest_does_is_measured(busybox, session_home, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        stream = await sandbox.metrics_stream(0.2)
        first = await anext(stream)
        assert 0 < first.uptime_ms < 60_000 and first.memory_limit_bytes == 512 << 20
        await sandbox.shell(
            "head -c 16000000 /dev/zero > /root/x; sync; dd if=/dev/vda of=/dev/null bs=64k count=8"
        )
        busy = asyncio.ensure_future(sandbox.shell("while :; do :; done", timeout=3.2))
        most = 0.0
        while not busy.done():
            sample = await anext(stream)
            most = max(most, sample.cpu_percent)
        await asyncio.gather(busy, return_exceptions=True)
        assert most > 20
        assert sample.disk_write_bytes - first.disk_write_bytes >= 16_000_000
        assert sample.disk_read_bytes > first.disk_read_bytes
        assert sample.vcpu_time_ns > first.vcpu_time_ns
        assert 8 << 20 < sample.memory_bytes == sample.memory_host_resident_bytes
        assert (sample.net_rx_bytes, sample.net_tx_bytes) == (0, 0)
        assert (await all_sandbox_metrics()).keys() == {name}
        found = subprocess.run([*MSB, "metrics", name, "--format", "json"], capture_output=True, text=True)
        assert json.loads(found.stdout)["memory_limit_bytes"] == 512 << 20
        [record] = records(session_home, name)
        assert record.active and record.entry.process.pid == sandbox._process.pid
        await sandbox.stop()
        with pytest.raises(MetricsUnavailableError):
            await sandbox.metrics()
        [record] = records(session_home, name)
        assert record.visible and not record.active, "the slot of a sandbox that has ended is stale"


async def test_a_killed_supervisor_leaves_no_slot(busybox, session_home, name):
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.metrics()
    os.kill(sandbox._process.pid, 9)
    await sandbox._process.wait()
    assert (await Sandbox.get(name)).status == "crashed"
    assert records(session_home, name) == []
    sandbox.release()
    await Sandbox.remove(name)


async def test_sampling_costs_next_to_nothing_and_a_paused_sandbox_is_not_sampled(busybox, name):
    async with await Sandbox.create(name, image=busybox) as sandbox:
        await sandbox.metrics()
        await asyncio.sleep(2)
        supervisor = sandbox._process.pid
        before, started = cpu_time(supervisor), time.monotonic()
        await asyncio.sleep(6)
        used = (cpu_time(supervisor) - before) / (time.monotonic() - started)
        assert used < 0.004, f"an idle supervisor uses {used:.2%} of a processor"
        await sandbox.pause()
        await asyncio.sleep(2.5)
        before = cpu_time(supervisor)
        assert (await sandbox.metrics()).cpu_percent == 0
        await asyncio.sleep(3)
        assert cpu_time(supervisor) == before
        await sandbox.resume()
