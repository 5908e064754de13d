"""The sampler with a real process in the machine's place and a scripted QEMU monitor."""

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import time

import pytest

from microsandbox.errors import VmmError
from microsandbox.metrics.registry import Entry, Registry, RegistryError, Slot
from microsandbox.metrics.sample import Meter, disk_totals
from microsandbox.metrics.sampler import Sampler
from microsandbox.store.processes import ProcessIdentity
from microsandbox.vmm.monitor import Monitor

INTERVAL = 0.05
DISKS = [
    {"device": "", "stats": {"rd_bytes": 100, "wr_bytes": 1}},
    {"device": "", "stats": {"rd_bytes": 11, "wr_bytes": 2}},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry"


@pytest.fixture
def machine():
    """A process that uses a whole CPU."""
    process = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    yield process
    process.kill()
    process.wait()


class Qemu:
    """A QMP socket: answers query-blockstats with ``disks``, or not at all while that is None."""

    def __init__(self):
        self.disks, self.asked = DISKS, 0

    async def serve(self, sock):
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b'{"QMP": {}}\n')
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                request = json.loads(data)
                answer = {} if request["execute"] == "qmp_capabilities" else self.disks
                self.asked += request["execute"] == "query-blockstats"
                if answer is not None:
                    writer.write(json.dumps({"return": answer, "id": request["id"]}).encode() + b"\n")
        writer.close()


@pytest.fixture
async def qemu():
    ours, theirs = socket.socketpair()
    qemu = Qemu()
    serving = asyncio.ensure_future(qemu.serve(theirs))
    qemu.monitor = await Monitor.open(ours)
    yield qemu
    qemu.monitor._transport.abort()
    await serving


@pytest.fixture
def running():
    running = asyncio.Event()
    running.set()
    return running


@pytest.fixture
async def start(path, machine, qemu, running):
    """Run a sampler in a slot that was reserved for it."""
    tasks = []

    def start(**changes):
        entry = Entry(1, 5, ProcessIdentity.current(), "box", 512 << 20, int(time.time() * 1000))
        with Registry.open_or_make(path, 4) as registry:
            slot = changes.get("slot") or registry.reserve(entry)
        meter = Meter(machine.pid, qemu.monitor)
        tasks.append(asyncio.ensure_future(Sampler(path, slot, entry, meter, INTERVAL).run(running)))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def record(path, check=lambda record: record.sample is not None, within=5):
    """The registry's only record, once it is as it should be."""
    async with asyncio.timeout(within):
        while True:
            with contextlib.suppress(OSError, ValueError, RegistryError), Registry.open(path) as registry:
                [found] = registry.records()
                if check(found):
                    return found
            await asyncio.sleep(0.01)


async def test_samples_say_what_the_machine_uses(path, start):
    start()
    first = await record(path)
    assert first.active and first.sample.cpu_percent is None
    sample = (await record(path, lambda found: found.sample and found.sample.cpu_percent)).sample
    assert 1 < sample.cpu_percent <= 110
    assert sample.vcpu_time_ns > first.sample.vcpu_time_ns or sample == first.sample
    assert 0 < sample.memory_resident < 100 << 20
    assert (sample.disk_read, sample.disk_write) == (111, 3)
    assert (sample.net_rx, sample.net_tx, sample.memory_available) == (0, 0, None)


async def test_the_slot_is_stale_when_the_sampler_ends(path, start):
    task = start()
    last = await record(path)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with Registry.open(path) as registry:
        left = registry.read(last.slot.index)
    assert left.visible and not left.active and left.sample is not None


async def test_a_paused_machine_has_one_sample_that_says_so_and_then_none(path, start, running):
    start()
    await record(path, lambda found: found.sample and found.sample.cpu_percent)
    running.clear()
    still = await record(path, lambda found: found.sample.cpu_percent == 0)
    await asyncio.sleep(4 * INTERVAL)
    assert await record(path) == still
    running.set()
    await record(path, lambda found: found.sample.cpu_percent != 0)


async def test_a_registry_that_was_replaced_gets_the_sandbox_again(path, start):
    start()
    await record(path)
    path.write_bytes(b"nonsense")
    path.chmod(0o600)
    assert (await record(path, lambda found: found.active and found.sample)).entry.name == "box"
    path.unlink()
    await record(path, lambda found: found.active and found.sample)


async def test_a_reservation_that_was_lost_is_made_again(path, start):
    start(slot=Slot(3, 77))
    assert (await record(path)).slot == Slot(0, 1)


async def test_a_sampler_whose_slot_is_somebody_elses_stops_for_good(path, start, caplog):
    task = start()
    found = await record(path)
    with Registry.open(path) as registry:
        registry.retire(found.slot)
        other = [registry.reserve(found.entry) for _ in range(4)][-1]
    await asyncio.wait_for(task, 5)
    with Registry.open(path) as registry:
        assert registry.read(other.index).slot == other
    assert "no more metrics" in caplog.text


async def test_a_monitor_that_does_not_answer_is_asked_once_and_the_rest_goes_on(
    path, start, qemu, monkeypatch
):
    monkeypatch.setattr("microsandbox.metrics.sample._ANSWER_TIME", 0.02)
    qemu.disks = None
    start()
    early = await record(path)
    await record(path, lambda found: found.sample.time_ms > early.sample.time_ms + 200)
    assert qemu.asked == 1


async def test_a_machine_that_is_gone_ends_the_sampling(path, start, machine, caplog):
    caplog.set_level(logging.WARNING)
    task = start()
    await record(path)
    machine.kill()
    machine.wait()
    await asyncio.wait_for(task, 5)


async def test_an_idle_machine_is_not_asked_for_its_disks_at_every_sample(path, machine, qemu):
    idle = subprocess.Popen(["sleep", "60"])
    try:
        meter = Meter(idle.pid, qemu.monitor)
        for _ in range(5):
            await meter.measure()
        assert qemu.asked <= 1
        await meter.measure(paused=True)
        assert qemu.asked >= 1
    finally:
        idle.kill()
        idle.wait()


@pytest.mark.parametrize(
    "answer",
    [
        None, 5, {"a": 1}, [1], [{}], [{"stats": None}], [{"stats": {"rd_bytes": 1}}],
        [{"stats": {"rd_bytes": -1, "wr_bytes": 0}}], [{"stats": {"rd_bytes": "1", "wr_bytes": 0}}],
        [{"stats": {"rd_bytes": True, "wr_bytes": 0}}], [{"stats": {"rd_bytes": 1.5, "wr_bytes": 0}}],
    ],
)  # fmt: skip
def test_figures_that_make_no_sense_are_refused(answer):
    with pytest.raises(VmmError, match="make no sense"):
        disk_totals(answer)


def test_figures_beyond_what_a_slot_holds_are_cut():
    assert disk_totals([{"stats": {"rd_bytes": 1 << 70, "wr_bytes": 2}}]) == ((1 << 64) - 1, 2)
