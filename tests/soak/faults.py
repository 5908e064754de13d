"""What is done to the owners, supervisors, machines and the host under them, each at a moment of its own."""

import asyncio
import os
import random
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from microsandbox import Sandbox
from microsandbox.errors import MicrosandboxError
from microsandbox.store.home import Home
from microsandbox.template.store import TemplateStore
from tests import audit

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@dataclass
class Scene:
    """Where faults happen: a home, the owners that work in it, and chance."""

    home: Path
    rng: random.Random
    owners: list[subprocess.Popen] = field(default_factory=list)

    @property
    def clock(self):
        """The file that sets the owners' clock, as faketime has it."""
        return self.home / "clock"

    def one_of(self, pids):
        return self.rng.choice(sorted(pids)) if pids else None

    def living_owner(self):
        return self.one_of({owner.pid for owner in self.owners if owner.poll() is None})

    def machine(self):
        return self.one_of(audit.machines(self.home))

    def supervisor(self):
        return self.one_of(audit.supervisors(self.home))


def _send(pid, number):
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def _stand_still(scene, pid):
    _send(pid, signal.SIGSTOP)
    await asyncio.sleep(scene.rng.random() * 3)
    _send(pid, signal.SIGCONT)


async def nothing(scene):
    """No fault: then nothing may fail."""


async def owner_killed(scene):
    _send(scene.living_owner(), signal.SIGKILL)


async def owner_terminated(scene):
    _send(scene.living_owner(), signal.SIGTERM)


async def supervisor_killed(scene):
    _send(scene.supervisor(), signal.SIGKILL)


async def supervisor_terminated(scene):
    _send(scene.supervisor(), signal.SIGTERM)


async def supervisor_stands_still(scene):
    await _stand_still(scene, scene.supervisor())


async def machine_killed(scene):
    _send(scene.machine(), signal.SIGKILL)


async def machine_stands_still(scene):
    await _stand_still(scene, scene.machine())


async def agent_killed(scene):
    """The guest's kernel panics, and its agent with it: as PID 1 it cannot be killed otherwise."""
    running = [one for one in await Sandbox.list() if one.status == "running"]
    if running:
        with suppress(MicrosandboxError, OSError):
            sandbox = await scene.rng.choice(running).connect()
            async with asyncio.timeout(10):
                await sandbox.exec("sh", ["-c", "echo c > /proc/sysrq-trigger"])


async def builder_killed(scene):
    """Templates are gone, so they are built anew, and the builder dies."""
    store = TemplateStore(Home.open())
    for key in store.ids():
        store.discard(key)
    await asyncio.sleep(scene.rng.random() * 3)
    for pid in audit.builders(scene.home):
        _send(pid, signal.SIGKILL)


async def disk_full(scene):
    """The home's file system is full for some seconds."""
    ballast = scene.home / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            free = os.statvfs(scene.home)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
            file.seek(0, os.SEEK_END)
            while file.write(bytes(4096)):
                pass
        await asyncio.sleep(scene.rng.random() * 3)
    finally:
        ballast.unlink()


async def descriptors_exhausted(scene):
    """A process has no descriptors left for some seconds."""
    pid = scene.rng.choice([scene.living_owner, scene.supervisor])()
    if pid is None:
        return
    with suppress(ProcessLookupError, FileNotFoundError):
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        few = len(os.listdir(f"/proc/{pid}/fd")) + scene.rng.randrange(3)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before[1]))
        await asyncio.sleep(scene.rng.random() * 3)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def database_locked(scene):
    """Another process writes to the catalogue and takes its time."""
    connection = sqlite3.connect(scene.home / "db" / "msb.db", timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(scene.rng.choice((1, 4, 12)))
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def clock_jumps(scene):
    """The clock of owners and supervisors jumps by up to a day."""
    scene.clock.write_text(f"{scene.rng.randint(-86400, 86400):+d}\n")


@dataclass(frozen=True)
class Fault:
    """``hits`` is how often it happens in a round; ``harmless`` when nothing may fail for it."""

    strike: Callable[[Scene], Awaitable[None]]
    hits: int = 2
    harmless: bool = False

    @property
    def name(self):
        return self.strike.__name__


FAULTS = (
    Fault(nothing, hits=0, harmless=True),
    Fault(owner_killed),
    Fault(owner_terminated),
    Fault(supervisor_killed, hits=3),
    Fault(supervisor_terminated, hits=3),
    Fault(supervisor_stands_still),
    Fault(machine_killed, hits=3),
    Fault(machine_stands_still),
    Fault(agent_killed, hits=3),
    Fault(builder_killed),
    Fault(disk_full),
    Fault(descriptors_exhausted, hits=3),
    Fault(database_locked, hits=1),
    Fault(clock_jumps, hits=3, harmless=True),
)
