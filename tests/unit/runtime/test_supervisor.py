"""A supervisor around a process that stands for QEMU, and a test in the place of its guest."""

import asyncio
import marshal
import os
import socket
import sqlite3
import subprocess
import sys

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from microsandbox.agent.protocol import MessageType, encode
from microsandbox.runtime.boot_failure import BootFailure
from microsandbox.runtime.plan import LaunchPlan
from microsandbox.runtime.supervisor import Supervisor
from microsandbox.store.database import Database
from microsandbox.store.sandboxes import SandboxCatalog
from microsandbox.vmm.jail import JailedProcess
from microsandbox.vmm.qemu import QemuInstallation, VirtualMachine
from tests.unit.runtime.conftest import Guest


class Box:
    """A plan with its row, and what became of it."""

    def __init__(self, directory):
        (directory / "box/logs").mkdir(parents=True)
        database = directory / "db/msb.db"
        self.catalog = SandboxCatalog(Database(database))
        row = self.catalog.create("box", "{}", {}, None)
        self.socket = directory / "sock"
        self.plan = LaunchPlan(
            name="box", sandbox_id=row.id, run_id=row.run_id, database=str(database),
            directory=str(directory / "box"), agent_socket=str(self.socket),
            qemu=QemuInstallation("", "7.2", "", ()), jail="namespaces", kernel="",
            initramfs="", accelerator="tcg", cpus=1, memory_mib=64, disks=(), boot={},
        )  # fmt: skip

    @property
    def record(self):
        return BootFailure.load(self.plan.boot_error)

    @property
    def end(self):
        """What the catalogue knows: status, reason, detail."""
        with sqlite3.connect(self.plan.database) as database:
            [found] = database.execute(
                "SELECT s.status, r.termination_reason, r.termination_detail "
                "FROM sandbox s JOIN run r ON r.sandbox_id = s.id"
            )
        return found


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)


@pytest.fixture
def machine(box):
    """Starts the process; the far end of its agent port is a test's."""
    far = []

    def start(script="exec sleep 1000"):
        pairs = {name: socket.socketpair() for name in ("agent", "console", "qmp", "errors")}
        far.append(pairs["agent"][1])
        numbers = {"console": 7, "qmp": 8, "errors": 2}
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", script],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, pairs[name][1].fileno(), to) for name, to in numbers.items()],
        )
        for name in numbers:
            pairs[name][1].close()
        process = JailedProcess(pid, os.open(os.devnull, os.O_RDONLY))
        return VirtualMachine(process, **{name: ours for name, (ours, _) in pairs.items()}), Guest(far[-1])

    yield start
    for sock in far:
        sock.close()


async def supervise(box, vm):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(box.socket))
    listener.listen()
    with listener:
        box.supervisor = Supervisor(box.plan, vm, box.catalog, listener, None)
        return await asyncio.wait_for(box.supervisor.run(), 20)


async def test_a_boot_failure_whose_record_cannot_be_written_is_in_the_catalogue(box, machine):
    box.plan.boot_error.mkdir()
    vm, guest = machine("echo no such device >&2; exit 1")
    guest.sock.close()
    assert await supervise(box, vm) == 1
    assert box.end == ("Stopped", "InternalError", "QEMU failed: no such device")


async def test_the_end_before_the_guest_is_ready_needs_no_record(box, machine):
    box.plan.boot_error.mkdir()
    box.plan = replace(box.plan, max_duration=0.1)
    vm, _ = machine()
    assert await supervise(box, vm) == 0
    assert box.end[:2] == ("Stopped", "MaxDurationExceeded")


@pytest.mark.parametrize("log", ["kernel.log", "qemu.log"])
async def test_a_log_that_cannot_be_kept_is_a_boot_failure_and_the_end_of_the_machine(box, machine, log):
    (box.plan.logs / log).mkdir()
    vm, _ = machine()
    assert await supervise(box, vm) == 1
    assert "Is a directory" in box.record.message
    assert box.record.errno == 21
    assert box.end == ("Stopped", "InternalError", box.record.message)
    assert not os.path.exists(f"/proc/{vm.pid}")


async def test_a_configuration_that_is_no_message_is_a_boot_failure(box, machine):
    box.plan = replace(box.plan, boot={"init": {"env": ["x" * (4 << 20)]}})
    vm, guest = machine()
    guest.sock.sendall(encode(0, MessageType.BOOT_HELLO, {}).raw)
    assert await supervise(box, vm) == 1
    assert "is larger than" in box.record.message
    assert box.end == ("Stopped", "InternalError", box.record.message)


def come_up(guest):
    """All that a guest says until it is ready."""
    for kind in (MessageType.BOOT_HELLO, MessageType.INIT_RESOLVED, MessageType.READY):
        guest.sock.sendall(encode(0, kind, {}).raw)


async def test_a_task_that_fails_is_a_word_in_the_log_and_done_with(box, machine, caplog):
    (box.plan.logs / "timings.json").mkdir()
    vm, guest = machine()
    come_up(guest)
    running = asyncio.ensure_future(supervise(box, vm))
    async with asyncio.timeout(10):
        while "a task of the supervisor failed" not in caplog.text:
            await asyncio.sleep(0.01)
    assert "Is a directory" in caplog.text
    assert not running.done(), "the sandbox lives on"
    assert not any(task.done() for task in box.supervisor._tasks)
    vm.kill()
    assert await running == 0


LAUNCH = """
import marshal, sys
from microsandbox.runtime.launch import supervise
from microsandbox.runtime.program import Started
sys.exit(supervise(marshal.load(sys.stdin.buffer), Started(None, (), "no machine"), None, []))
"""


def launch(box):
    """The supervisor of a machine that did not start, in a process of its own."""
    values = to_builtins(box.plan, builtin_types=(bytes,))
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH], input=marshal.dumps(values), capture_output=True, timeout=60
    )
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode


def test_a_machine_that_did_not_start_is_recorded(box):
    assert launch(box) == 1
    assert box.record.message == "no machine"
    assert box.end == ("Stopped", "InternalError", "no machine")


def test_a_log_of_its_own_that_cannot_be_kept_is_recorded(box):
    (box.plan.logs / "runtime.log").mkdir()
    assert launch(box) == 1
    assert box.record.errno == 21
    assert box.end == ("Stopped", "InternalError", box.record.message)


def test_a_sandbox_that_is_gone_is_not_made_again_for_a_record(box):
    box.plan.logs.rmdir()
    box.plan.logs.parent.rmdir()
    box.socket.mkdir()
    assert launch(box) == 1
    assert not box.plan.logs.parent.exists()
