"""Starting a supervisor that does not start as it should: exact words, and nothing left."""

import asyncio
import os
import resource
from pathlib import Path

import pytest
from msgspec import to_builtins

from microsandbox.errors import MicrosandboxError
from microsandbox.runtime import spawn as spawning
from microsandbox.runtime import standby
from microsandbox.runtime.boot_failure import BootFailure
from microsandbox.runtime.launch import supervise
from microsandbox.runtime.plan import LaunchPlan, Parcel
from microsandbox.runtime.program import Started
from microsandbox.runtime.spawn import SpawnMode, spawn
from microsandbox.store.database import Database
from microsandbox.store.sandboxes import SandboxCatalog
from microsandbox.vmm.jail import Jailed


class Slot:
    released = 0

    def release(self):
        self.released += 1


@pytest.fixture
def parcel(tmp_path):
    (tmp_path / "box").mkdir()
    plan = LaunchPlan(
        name="box", sandbox_id=1, run_id=1, database=str(tmp_path / "db/msb.db"),
        directory=str(tmp_path / "box"),
        agent_socket=str(tmp_path / "sock"), qemu={}, jail="namespaces", kernel="", initramfs="",
        accelerator="tcg", cpus=1, memory_mib=64, disks=(), boot={},
    )  # fmt: skip
    return Parcel(plan, Jailed(("/bin/true",), {}, (), 2, "namespaces"), None, ())


@pytest.fixture
def supervisor(monkeypatch):
    """Have a shell script run in the supervisor's place."""
    standby.dismiss()  # one may wait for a sandbox of an earlier test

    def use(script):
        monkeypatch.setattr(spawning, "module_command", lambda *_: ["/bin/sh", "-c", script])

    return use


def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("exit 3", r"sandbox process exited \(exit code 3\) before sending startup info \(line: ''"),
        ("echo garbage; sleep 100", r"sandbox process exited \(signal 9\) .* \(line: 'garbage\\n'"),
        ("echo '{\"pid\": 1}'; sleep 100", r"before sending startup info"),
        ("echo '[]'; sleep 100", r"before sending startup info"),
        ("yes x | tr -d '\\n' | head -c 100000; sleep 100", r"before sending startup info"),
    ],
)
@pytest.mark.parametrize("mode", list(SpawnMode))
async def test_a_wrong_startup_line_ends_it(parcel, supervisor, script, text, mode):
    supervisor(script)
    slot = Slot()
    before, running = len(os.listdir("/proc/self/fd")), children()
    with pytest.raises(MicrosandboxError, match=f"^runtime error: .*{text}"):
        await spawn(parcel, (), mode, reservation=slot)
    assert slot.released == 1
    assert children() == running
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_startup_line_that_does_not_come_is_a_timeout(parcel, supervisor, monkeypatch):
    supervisor("sleep 100")
    monkeypatch.setattr(spawning, "STARTUP_TIMEOUT", 0.3)
    running = children()
    with pytest.raises(
        MicrosandboxError, match=r"sandbox startup timeout: no JSON received within 0\.3 seconds"
    ):
        await spawn(parcel, (), SpawnMode.DETACHED)
    assert children() == running


@pytest.mark.parametrize("mode", list(SpawnMode))
async def test_a_cancelled_spawn_leaves_no_process(parcel, supervisor, mode):
    supervisor("sleep 100")
    running = children()
    starting = asyncio.ensure_future(spawn(parcel, (), mode))
    while children() == running:
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert children() == running


@pytest.mark.parametrize("mode", list(SpawnMode))
async def test_a_supervisor_that_cannot_be_watched_is_ended_and_the_next_is_none_the_worse(
    parcel, supervisor, monkeypatch, mode
):
    supervisor('echo "{\\"pid\\": $$}"; exec sleep 100')
    start, slot = spawning._start, Slot()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def start_with_the_last_descriptors(*arguments):
        pid = start(*arguments)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        return pid

    before, running = len(os.listdir("/proc/self/fd")), children()
    monkeypatch.setattr(spawning, "_start", start_with_the_last_descriptors)
    try:
        with pytest.raises(OSError, match="Too many open files"):
            await spawn(parcel, (), mode, reservation=slot)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        monkeypatch.setattr(spawning, "_start", start)
    assert slot.released == 1
    assert children() == running
    assert len(os.listdir("/proc/self/fd")) == before
    for _ in range(2):
        await spawning.abandon(await spawn(parcel, (), mode))
    assert children() == running


async def test_the_supervisor_gets_its_descriptors_at_their_numbers(parcel, supervisor, tmp_path):
    supervisor('ls -l /proc/self/fd > "$OUT"; echo "{\\"pid\\": $$}"; exec sleep 100')
    os.environ["OUT"] = str(tmp_path / "fds")
    disk = os.open("/etc/passwd", os.O_RDONLY)
    try:
        handle = await spawn(parcel, (disk,), SpawnMode.ATTACHED)
        listing = (tmp_path / "fds").read_text()
        assert " 97 -> pipe:" in listing
        assert " 98 -> /memfd:launch-plan" in listing
        assert " 100 -> /etc/passwd" in listing
        handle.kill()
        await handle.wait()
    finally:
        del os.environ["OUT"]
        os.close(disk)


def test_a_relay_socket_that_cannot_be_made_is_recorded_for_the_owner(parcel, tmp_path):
    (tmp_path / "sock").mkdir()
    qemu = {"binary": "", "version": "7.2", "firmware": "", "files": []}
    row = SandboxCatalog(Database(Path(parcel.plan.database))).create("box", "{}", {}, None)
    values = {**to_builtins(parcel.plan, builtin_types=(bytes,)), "qemu": qemu, "run_id": row.run_id}
    assert supervise(values, Started(None, ()), None, []) == 1
    failure = BootFailure.load(parcel.plan.logs / "boot-error.json")
    assert failure.message == f"bind {tmp_path / 'sock'}: Is a directory (os error 21)"
    assert (failure.stage, failure.errno) == ("network", 21)
