"""The metrics registry of a home: a file in shared memory with one slot for each running sandbox.

    FREE ──reserve──► RESERVED ──activate──► ACTIVE ──retire──► STALE
      ▲                  │ release             │ its process died  │
      └──────────────────┴─────────────────────┘     reserve ◄─────┘ (when nothing is free)

The layout is that of microsandbox 0.5.6, with two fields more in a slot's padding: when its process started,
so that a reused pid is not taken for it, and a checksum. Whoever changes a slot's state holds the file's
lock; samples are written by the slot's process alone, without it. A reader takes what was whole: the sequence
number is odd while a slot is written, and the checksum must fit, which no processor can reorder.

It is read and written, not mapped: a mapping would kill its process when somebody cuts the file. A file that
is not as it should be is replaced by an empty one, never repaired; samplers notice, and enlist again.
"""

from __future__ import annotations

import fcntl
import math
import os
import stat
import struct
import time
from binascii import crc32
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from microsandbox.errors import MicrosandboxError
from microsandbox.store.files import writing
from microsandbox.store.processes import ProcessIdentity

DEFAULT_CAPACITY = 1024
MAX_CAPACITY = 65536
_MAGIC, _VERSION, _READY = 0x31305445_4D42534D, 2, 2
_HEADER_SIZE, _SLOT_SIZE = 256, 512
#: magic, version, header and slot length, capacity, state, creation (ms), global generation
_HEADER = struct.Struct("=QIIIII4xqQ")
_GENERATION = struct.Struct("=Q")
_GENERATION_OFFSET = 0x28
#: state, generation, sequence number
_HEAD = struct.Struct("=I4xQQ")
_SEQUENCE = struct.Struct("=Q")
_SEQUENCE_OFFSET = 0x10
#: sandbox, run, pid; started, sampled (ms); flags; memory limit; vCPU time (ns); CPU %; used, available and
#: resident memory; disk and net counters; name; when the process started (ticks)
_BODY = struct.Struct("=iii4xqqI4xQQf4xQQQQQQQH6x128sQ")
_CHECKSUM = struct.Struct("=I")
_CHECKED_SIZE = _HEAD.size + _BODY.size
_CPU, _USED, _AVAILABLE, _RESIDENT = 1, 2, 4, 8
_FREE, _RESERVED, _ACTIVE, _STALE = range(4)
#: How often a slot is read while it is being written, and the lock asked for, 1 ms apart: it is held for
#: microseconds, unless its holder was stopped, and no sandbox waits for its metrics.
_READ_ATTEMPTS, _LOCK_ATTEMPTS = 256, 100


class RegistryError(MicrosandboxError):
    """The registry cannot be used for what was asked."""

    code = "metrics-registry"


class Sample(Struct, frozen=True):
    """One measurement of a sandbox. Sizes in bytes, counters since its start; None is unknown."""

    time_ms: int
    vcpu_time_ns: int
    cpu_percent: float | None
    memory: int | None
    memory_available: int | None
    memory_resident: int | None
    disk_read: int
    disk_write: int
    net_rx: int = 0
    net_tx: int = 0


class Entry(Struct, frozen=True):
    """Who a slot is for. Until it is active ``started_ms`` is 0, and the process is who reserved it."""

    sandbox_id: int
    run_id: int
    process: ProcessIdentity
    name: str
    memory_limit: int
    started_ms: int = 0


class Slot(Struct, frozen=True):
    """A place in a registry. It is its holder's as long as the generation there is this one."""

    index: int
    generation: int


class Record(Struct, frozen=True):
    """What a slot says. ``sample`` is None before the first one."""

    slot: Slot
    state: int
    entry: Entry
    sample: Sample | None

    @property
    def active(self) -> bool:
        return self.state == _ACTIVE

    @property
    def visible(self) -> bool:
        return self.state in (_ACTIVE, _STALE)


class Registry:
    """An open registry; a context manager."""

    def __init__(self, path: Path, fd: int, capacity: int) -> None:
        self.path, self.capacity = path, capacity
        self._fd = fd

    @classmethod
    def open(cls, path: Path) -> Registry:
        """Raises FileNotFoundError, RegistryError when it is damaged or somebody else's, OSError."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return cls(path, fd, _check(fd))
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open_or_make(cls, path: Path, capacity: int | None = None) -> Registry:
        """The registry with that capacity (None: any); one that is missing or not so is made anew."""
        with suppress(FileNotFoundError, RegistryError):
            registry = cls.open(path)
            if capacity in (None, registry.capacity):
                return registry
            registry.close()
        _make(path, capacity or DEFAULT_CAPACITY)
        return cls.open(path)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_current(self) -> bool:
        """Whether this is still the registry that others find."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._fd)) and found.st_size == _size(self.capacity)

    # changes of state

    def reserve(self, entry: Entry) -> Slot:
        """Take a slot; ``entry`` names this process. Raises RegistryError when there is none."""
        with self._locked():
            index = self._vacancy()
            header = os.pread(self._fd, _GENERATION.size, _GENERATION_OFFSET)
            generation = (_GENERATION.unpack(header)[0] + 1) & (1 << 64) - 1
            os.pwrite(self._fd, _GENERATION.pack(generation), _GENERATION_OFFSET)
            self._write(index, _RESERVED, generation, entry, None)
        return Slot(index, generation)

    def activate(self, slot: Slot, entry: Entry) -> None:
        """Make a reserved slot that of a running sandbox. Raises RegistryError when it is not ours."""
        with self._locked():
            self._expect(slot, _RESERVED)
            self._write(slot.index, _ACTIVE, slot.generation, entry, None)

    def write(self, slot: Slot, entry: Entry, sample: Sample) -> None:
        """Publish a sample, as the slot's own process. Raises RegistryError when the slot is not ours."""
        self._expect(slot, _ACTIVE)
        self._write(slot.index, _ACTIVE, slot.generation, entry, sample)

    def retire(self, slot: Slot) -> None:
        """Leave an active slot with its last sample to whoever needs it next; fine if it is not ours."""
        with self._locked(), suppress(RegistryError):
            self._expect(slot, _ACTIVE)
            os.pwrite(self._fd, b"\x03", _offset(slot.index))

    def release(self, slot: Slot) -> bool:
        """Give a slot back that was reserved and never became active; False when it is not such a one."""
        with self._locked():
            try:
                self._expect(slot, _RESERVED)
            except RegistryError:
                return False
            os.pwrite(self._fd, b"\x00", _offset(slot.index))
            return True

    def free_dead(self, name: str) -> None:
        """Free the slots of a sandbox whose process died without a word."""
        for record in self.records():
            if record.entry.name == name and self._is_dead(record):
                with self._locked(), suppress(RegistryError):
                    self._expect(record.slot, record.state)
                    os.pwrite(self._fd, b"\x00", _offset(record.slot.index))

    # reading

    def records(self) -> Iterator[Record]:
        """What every slot in use says, as far as it is whole."""
        for index, state in enumerate(self._states()):
            if state != _FREE and (record := self.read(index)) is not None:
                yield record

    def read(self, index: int) -> Record | None:
        """What a slot says; None for one that is free, damaged, or always just being written."""
        for _ in range(_READ_ATTEMPTS):
            raw = os.pread(self._fd, _CHECKED_SIZE + _CHECKSUM.size, _offset(index))
            if len(raw) < _CHECKED_SIZE + _CHECKSUM.size:
                return None
            state, generation, sequence = _HEAD.unpack_from(raw)
            if state == _FREE:
                return None
            checksum = _checksum(generation, raw[_HEAD.size : _CHECKED_SIZE])
            if not sequence & 1 and raw[_CHECKED_SIZE:] == checksum:
                return _record(Slot(index, generation), state, raw)
            os.sched_yield()
        return None

    def _states(self) -> bytes:
        """The states of all slots up to the last that was ever used: behind it the file is a hole."""
        end = min(os.lseek(self._fd, 0, os.SEEK_HOLE), _size(self.capacity))
        return os.pread(self._fd, end, 0)[_HEADER_SIZE::_SLOT_SIZE]

    def _vacancy(self) -> int:
        states = self._states()
        if (index := states.find(_FREE)) >= 0:
            return index
        if len(states) < self.capacity:
            return len(states)
        if (index := states.find(_STALE)) >= 0:
            return index
        for index in range(self.capacity):
            if (record := self.read(index)) is None or self._is_dead(record):
                return index
        raise RegistryError("metrics registry full")

    @staticmethod
    def _is_dead(record: Record) -> bool:
        return record.state in (_ACTIVE, _RESERVED) and not record.entry.process.alive()

    # one slot

    def _expect(self, slot: Slot, state: int) -> None:
        if not 0 <= slot.index < self.capacity:
            raise RegistryError(f"the registry has no slot {slot.index}")
        raw = os.pread(self._fd, _HEAD.size, _offset(slot.index))
        found, generation, _ = _HEAD.unpack(raw.ljust(_HEAD.size, b"\0"))
        if generation != slot.generation:
            raise RegistryError(f"generation mismatch: expected {slot.generation}, observed {generation}")
        if found != state:
            raise RegistryError(f"slot {slot.index} is in state {found}, not {state}")

    def _write(self, index: int, state: int, generation: int, entry: Entry, sample: Sample | None) -> None:
        """Write a slot that nobody else writes, so that no reader takes a part of it for the whole."""
        at = _offset(index)
        body = _pack(entry, sample)
        raw = os.pread(self._fd, _SEQUENCE.size, at + _SEQUENCE_OFFSET).ljust(_SEQUENCE.size, b"\0")
        sequence = (_SEQUENCE.unpack(raw)[0] | 1) & (1 << 63) - 1
        os.pwrite(self._fd, _SEQUENCE.pack(sequence), at + _SEQUENCE_OFFSET)
        os.pwrite(self._fd, body + _checksum(generation, body), at + _HEAD.size)
        os.pwrite(self._fd, _HEAD.pack(state, generation, sequence + 1), at)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0 if attempt == 0 else 0.001)
        else:
            raise RegistryError("metrics registry is locked by a process that does not go on")
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


class Reservation:
    """A slot that is the owner's until the sandbox's supervisor activates it."""

    def __init__(self, path: Path, slot: Slot) -> None:
        self.path, self.slot = path, slot

    @classmethod
    def make(cls, path: Path, capacity: int, entry: Entry) -> Reservation:
        """Raises RegistryError, OSError."""
        with Registry.open_or_make(path, capacity) as registry:
            return cls(path, registry.reserve(entry))

    def release(self) -> None:
        """Give it back unless the supervisor has it; nobody can do anything about errors here."""
        with suppress(OSError, RegistryError), Registry.open(self.path) as registry:
            registry.release(self.slot)


def free_dead(path: Path, name: str) -> None:
    """Free what processes of that sandbox have left in a registry when they were killed."""
    with suppress(OSError, RegistryError), Registry.open(path) as registry:
        registry.free_dead(name)


def _size(capacity: int) -> int:
    return _HEADER_SIZE + capacity * _SLOT_SIZE


def _offset(index: int) -> int:
    return _HEADER_SIZE + index * _SLOT_SIZE


def _make(path: Path, capacity: int) -> None:
    with writing(path) as file:
        now = int(time.time() * 1000)
        file.write(_HEADER.pack(_MAGIC, _VERSION, _HEADER_SIZE, _SLOT_SIZE, capacity, _READY, now, 0))
        file.truncate(_size(capacity))


def _check(fd: int) -> int:
    """The capacity of the registry in an open file. Raises RegistryError."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise RegistryError("the metrics registry is not a private file of this user")
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        raise RegistryError("metrics registry is still initializing")
    magic, version, header_size, slot_size, capacity, state, _, _ = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise RegistryError(f"invalid registry magic: 0x{magic:x}")
    if version != _VERSION:
        raise RegistryError(f"incompatible registry version: {version}")
    if header_size != _HEADER_SIZE:
        raise RegistryError(f"unexpected header length: {header_size}")
    if slot_size != _SLOT_SIZE:
        raise RegistryError(f"unexpected slot length: {slot_size}")
    if state != _READY:
        raise RegistryError(f"invalid registry header state: {state}")
    if not 0 < capacity <= MAX_CAPACITY or found.st_size != _size(capacity):
        raise RegistryError(f"registry of {found.st_size} bytes cannot have {capacity} slots")
    return int(capacity)


def _checksum(generation: int, body: bytes) -> bytes:
    return _CHECKSUM.pack(crc32(body, crc32(_GENERATION.pack(generation))))


def _pack(entry: Entry, sample: Sample | None) -> bytes:
    if sample is None:
        sample = Sample(0, 0, None, None, None, None, 0, 0)
    known = (
        (_CPU, sample.cpu_percent),
        (_USED, sample.memory),
        (_AVAILABLE, sample.memory_available),
        (_RESIDENT, sample.memory_resident),
    )
    name = entry.name.encode()
    return _BODY.pack(
        entry.sandbox_id, entry.run_id, entry.process.pid, entry.started_ms, sample.time_ms,
        sum(flag for flag, value in known if value is not None),
        entry.memory_limit, sample.vcpu_time_ns, sample.cpu_percent or 0.0,
        sample.memory or 0, sample.memory_available or 0, sample.memory_resident or 0,
        sample.disk_read, sample.disk_write, sample.net_rx, sample.net_tx,
        len(name), name, entry.process.started,
    )  # fmt: skip


def _record(slot: Slot, state: int, raw: bytes) -> Record | None:
    (
        sandbox_id, run_id, pid, started, sampled, flags, limit, vcpu_time, cpu, used, available, resident,
        disk_read, disk_write, net_rx, net_tx, length, name, process_started,
    ) = _BODY.unpack_from(raw, _HEAD.size)  # fmt: skip
    if state > _STALE or length > len(name) or not math.isfinite(cpu) or cpu < 0:
        return None
    process = ProcessIdentity(pid, process_started)
    text = name[:length].decode("utf-8", "replace")
    sample = Sample(
        sampled, vcpu_time,
        cpu if flags & _CPU else None,
        used if flags & _USED else None,
        available if flags & _AVAILABLE else None,
        resident if flags & _RESIDENT else None,
        disk_read, disk_write, net_rx, net_tx,
    )  # fmt: skip
    return Record(
        slot, state, Entry(sandbox_id, run_id, process, text, limit, started), sample if sampled else None
    )
