"""The registry, on real files and between real processes: whose a slot is, and what readers believe."""

import fcntl
import multiprocessing
import os
import struct
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from microsandbox.metrics import registry as module
from microsandbox.metrics.registry import Entry, Registry, RegistryError, Reservation, Sample, Slot, free_dead
from microsandbox.store.home import Home
from microsandbox.store.processes import ProcessIdentity

ME = ProcessIdentity.current()
NOBODY = ProcessIdentity(ME.pid, ME.started - 1)
SAMPLE = Sample(1700000000123, 5_000_000_000, 12.5, 300, None, 200, 11, 22, 33, 44)


def entry(name="box", run=1, process=ME, started=0):
    return Entry(7, run, process, name, 512 << 20, started)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry"


@pytest.fixture
def registry(path):
    with Registry.open_or_make(path, 4) as opened:
        yield opened


def active(registry, **who):
    slot = registry.reserve(entry(**who))
    registry.activate(slot, entry(started=1000, **who))
    return slot


def test_a_sample_comes_back_as_it_was_written(registry, path):
    slot = active(registry)
    registry.write(slot, entry(started=1000), SAMPLE)
    with Registry.open(path) as other:
        [record] = other.records()
    assert (record.slot, record.entry, record.sample) == (slot, entry(started=1000), SAMPLE)
    assert record.active and record.visible


def test_unknown_measurements_are_told_from_zero(registry):
    slot = active(registry)
    assert registry.read(slot.index).sample is None
    registry.write(slot, entry(), Sample(1, 0, None, None, 0, None, 0, 0))
    assert registry.read(slot.index).sample == Sample(1, 0, None, None, 0, None, 0, 0)


def test_the_layout_is_that_of_microsandbox(registry, path):
    slot = active(registry, name="näme", run=9)
    registry.write(slot, entry("näme", 9, started=1000), SAMPLE)
    raw = path.read_bytes()
    assert len(raw) == 256 + 4 * 512
    assert struct.unpack_from("=Q", raw) == (0x31305445_4D42534D,)
    assert struct.unpack_from("=IIIII", raw, 8) == (2, 256, 512, 4, 2)
    assert struct.unpack_from("=Q", raw, 0x28) == (1,)
    at = raw[256:]
    assert struct.unpack_from("=I", at, 0) == (2,)
    assert struct.unpack_from("=iii", at, 0x18) == (7, 9, os.getpid())
    assert struct.unpack_from("=qqI", at, 0x28) == (1000, 1700000000123, 1 | 2 | 8)
    assert struct.unpack_from("=QQf", at, 0x40) == (512 << 20, 5_000_000_000, 12.5)
    assert struct.unpack_from("=QQQQQQQ", at, 0x58) == (300, 0, 200, 11, 22, 33, 44)
    assert struct.unpack_from("=H", at, 0x90) == (5,)
    assert at[0x98 : 0x98 + 5] == "näme".encode()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_place_is_that_of_microsandbox(monkeypatch, tmp_path):
    monkeypatch.setenv("MSB_HOME", "/home/a/.microsandbox")
    digest = 0xCBF29CE484222325
    for byte in b"/home/a/.microsandbox":
        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    assert str(Home.open().metrics_registry) == f"/dev/shm/msb-met-{digest:016x}-v2"
    homes = []
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
        monkeypatch.chdir(tmp_path / directory)
        monkeypatch.setenv("MSB_HOME", "home")
        homes.append(Home.open().metrics_registry)
    assert homes[0] != homes[1], "two homes that are spelt alike would share their slots"


# states


def test_a_reserved_slot_can_be_given_back_once(registry):
    slot = registry.reserve(entry())
    assert registry.release(slot)
    assert not registry.release(slot)
    assert list(registry.records()) == []


def test_an_active_slot_is_left_alone_by_the_reservation(registry, path):
    reservation = Reservation.make(path, 4, entry())
    registry.activate(reservation.slot, entry(started=1))
    reservation.release()
    assert registry.read(reservation.slot.index).active


def test_a_reservation_without_a_registry_is_released_in_silence(registry, path):
    reservation = Reservation.make(path, 4, entry())
    path.unlink()
    reservation.release()


def test_a_retired_slot_keeps_its_last_sample_until_it_is_needed(registry):
    slots = [active(registry, run=run) for run in range(1, 5)]
    registry.write(slots[2], entry(run=3, started=1000), SAMPLE)
    registry.retire(slots[2])
    left = registry.read(2)
    assert left.visible and not left.active and left.sample == SAMPLE
    assert registry.reserve(entry(run=9)).index == 2
    assert registry.read(2).sample is None


def test_an_old_writer_cannot_overwrite_the_slots_new_owner(registry):
    old = active(registry)
    registry.retire(old)
    for run in range(2, 5):
        active(registry, run=run)
    new = active(registry, run=9)
    assert new.index == old.index and new.generation != old.generation
    registry.write(new, entry(run=9, started=1), SAMPLE)
    with pytest.raises(RegistryError, match=f"generation mismatch: expected {old.generation}, observed 5"):
        registry.write(old, entry(), SAMPLE)
    with pytest.raises(RegistryError, match="generation mismatch"):
        registry.activate(old, entry())
    registry.retire(old)
    assert not registry.release(old)
    assert registry.read(new.index).entry.run_id == 9 and registry.read(new.index).active


@pytest.mark.parametrize("state", ["reserved", "active"])
def test_a_full_registry_reclaims_slots_of_dead_processes(registry, state):
    for run in range(1, 5):
        process = NOBODY if run == 3 else ME
        slot = registry.reserve(entry(run=run, process=process))
        if state == "active":
            registry.activate(slot, entry(run=run, process=process))
    assert registry.reserve(entry(run=9)).index == 2
    with pytest.raises(RegistryError, match="metrics registry full"):
        registry.reserve(entry(run=10))


def test_the_end_of_a_killed_sandbox_frees_its_slot_and_no_other(registry, path):
    active(registry, name="killed", process=NOBODY)
    active(registry, name="killed", run=2)
    active(registry, name="other", process=NOBODY, run=3)
    free_dead(path, "killed")
    assert [record.entry.run_id for record in registry.records()] == [2, 3]
    free_dead(path.with_name("missing"), "killed")


def test_slots_are_given_out_from_the_first_and_the_file_stays_small(path):
    with Registry.open_or_make(path, 1024) as registry:
        assert [active(registry, run=run).index for run in range(20)] == list(range(20))
    assert path.stat().st_blocks * 512 <= 16384


# other processes


def _reserve_many(path, count, found):
    with Registry.open(path) as registry:
        found.put([registry.reserve(entry()).index for _ in range(count)])


def test_processes_that_reserve_at_once_get_slots_of_their_own(path):
    Registry.open_or_make(path, 256).close()
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    workers = [context.Process(target=_reserve_many, args=(path, 50, found)) for _ in range(4)]
    for worker in workers:
        worker.start()
    indexes = [index for _ in workers for index in found.get(timeout=30)]
    for worker in workers:
        worker.join()
    assert sorted(indexes) == list(range(200))


WRITER = """
import sys
from pathlib import Path
from microsandbox.metrics.registry import Entry, Registry, Sample, Slot
from microsandbox.store.processes import ProcessIdentity
with Registry.open(Path(sys.argv[1])) as registry:
    entry = Entry(1, 1, ProcessIdentity.current(), "w", 1)
    slot = registry.reserve(entry)
    registry.activate(slot, entry)
    print(slot.index, flush=True)
    n = 0
    while True:
        n += 1
        registry.write(slot, entry, Sample(n, n, None, n, n, n, n, n, n, n))
"""


@pytest.fixture
def writer(path):
    Registry.open_or_make(path, 4).close()
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_reader_never_sees_half_a_sample(path, writer):
    seen = set()
    deadline = time.monotonic() + 1
    with Registry.open(path) as registry:
        while time.monotonic() < deadline:
            if (record := registry.read(0)) is not None and (sample := record.sample) is not None:
                values = {sample.vcpu_time_ns, sample.memory, sample.disk_read, sample.disk_write}
                values |= {sample.time_ms, sample.net_rx, sample.net_tx, sample.memory_available}
                assert len(values) == 1, "a sample of two writes"
                seen |= values
    assert len(seen) > 5


def test_a_slot_whose_writer_was_killed_is_reclaimed(path, writer):
    writer.kill()
    writer.wait()
    with Registry.open(path) as registry:
        for _ in range(3):
            active(registry)
        assert registry.reserve(entry()).index == 0


def test_a_stopped_holder_of_the_lock_does_not_stop_everybody(registry, path):
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        started = time.monotonic()
        with pytest.raises(RegistryError, match="locked by a process that does not go on"):
            registry.reserve(entry())
        assert time.monotonic() - started < 2
    registry.reserve(entry())


# damage


@pytest.mark.parametrize(
    ("offset", "content", "complaint"),
    [
        (0, b"\0", "invalid registry magic: 0x"),
        (8, b"\3", "incompatible registry version: 3"),
        (0x0C, b"\1", "unexpected header length: 257"),
        (0x10, b"\1", "unexpected slot length: 513"),
        (0x14, b"\5", "cannot have 5 slots"),
        (0x14, b"\0", "cannot have 0 slots"),
        (0x17, b"\xff", "cannot have"),
        (0x18, b"\1", "invalid registry header state: 1"),
    ],
)
def test_a_damaged_registry_is_not_trusted_but_made_anew(registry, path, offset, content, complaint):
    registry.reserve(entry())
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content, offset)
    with pytest.raises(RegistryError, match=complaint):
        Registry.open(path)
    with Registry.open_or_make(path, 4) as anew:
        assert list(anew.records()) == []
        assert not registry.is_current() and anew.is_current()


@pytest.mark.parametrize("size", [0, 10, 256, 1000, 1 << 20])
def test_a_registry_of_the_wrong_size_is_made_anew(registry, path, size):
    os.truncate(path, size)
    assert not registry.is_current()
    with suppress(OSError):  # cut under an open one: nothing dies of it, or makes something up
        assert list(registry.records()) == []
    with Registry.open_or_make(path, 4) as anew:
        assert anew.reserve(entry()).index == 0


def test_another_capacity_makes_a_new_registry_for_whoever_asks_for_it(registry, path):
    registry.reserve(entry())
    with Registry.open_or_make(path) as same:
        assert same.capacity == 4
    with Registry.open_or_make(path, 8) as anew:
        assert anew.capacity == 8 and list(anew.records()) == []


def test_every_damaged_byte_of_a_slot_is_noticed(registry, path, monkeypatch):
    monkeypatch.setattr(module, "_READ_ATTEMPTS", 2)
    slot = active(registry)
    registry.write(slot, entry(started=1000), SAMPLE)
    good = path.read_bytes()[256:768]
    with path.open("r+b") as file:
        for position in (8, *range(0x18, 0x124)):
            os.pwrite(file.fileno(), bytes([good[position] ^ 0x55]), 256 + position)
            assert registry.read(0) is None, f"byte {position:#x}"
            os.pwrite(file.fileno(), good, 256)
    assert registry.read(0).sample == SAMPLE


def test_a_slot_out_of_bounds_is_refused(registry):
    for index in (-1, 4, 1 << 40):
        with pytest.raises(RegistryError, match="has no slot"):
            registry.activate(Slot(index, 1), entry())
    assert registry.read(4) is None


def test_what_others_could_write_is_not_opened(path):
    Registry.open_or_make(path, 4).close()
    path.chmod(0o666)
    with pytest.raises(RegistryError, match="not a private file of this user"):
        Registry.open(path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        Registry.open(path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(RegistryError, match="not a private file"):
        Registry.open(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_the_file_of_another_user_is_not_opened(path):
    Registry.open_or_make(path, 4).close()
    os.chown(path, 12345, 12345)
    with pytest.raises(RegistryError, match="not a private file of this user"):
        Registry.open(path)


def test_reserving_costs_well_below_a_millisecond(path):
    Registry.open_or_make(path, 1024).close()
    times = []
    for run in range(50):
        start = time.perf_counter()
        Reservation.make(path, 1024, entry(run=run))
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.0007, sorted(times)
