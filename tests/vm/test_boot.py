"""Boots that fail: the cause reaches the caller, quickly, and nothing is left but a stopped row."""

import asyncio
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from microsandbox import Image, Sandbox
from microsandbox.errors import (
    BootError,
    DiskInUseError,
    InvalidConfigError,
    MicrosandboxError,
    PrerequisiteError,
)
from microsandbox.sandbox.boot import prepare_host
from microsandbox.sandbox.context import Context
from microsandbox.store.home import Home
from microsandbox.units import MIB
from microsandbox.vmm.cpio import CpioWriter, Entry, read_entries
from tests import audit
from tests.images import busybox_archive

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean", "cold")]


async def fails(name, **options):
    """The BootError of a sandbox that does not boot, and the seconds from its machine's last word to that."""
    with pytest.raises(BootError) as caught:
        await Sandbox.create(name, **options)
    told = time.time()
    assert (await Sandbox.get(name)).status == "stopped"
    console = Home.open().sandbox(name).logs / "kernel.log"
    delay = told - console.stat().st_mtime if console.exists() else 0
    assert delay < 1, "a failure is told within a second of the event"
    await Sandbox.remove(name)
    return caught.value


@pytest.fixture
def initramfs(session_home):
    """Rewrites the kernel's initramfs, entry by entry, in a private copy of the kernel directory."""
    link = session_home / "kernels"
    original = link.resolve()
    link.unlink()
    shutil.copytree(original, link, symlinks=True)

    def rewrite(change):
        for path in link.rglob("initramfs"):
            content = path.read_bytes()
            archive = io.BytesIO()
            writer = CpioWriter(archive)
            for entry in filter(None, map(change, read_entries(content))):
                writer.add(entry)
            writer.finish()
            path.write_bytes(archive.getvalue().ljust(len(content), b"\0"))  # another size would be found out

    yield rewrite
    shutil.rmtree(link)
    link.symlink_to(original)


def without_init(entry):
    return None if entry.name == "init" else entry


def with_garbage(name):
    return lambda entry: Entry(entry.name, entry.mode, b"garbage") if name in entry.name else entry


NO_AGENT = "the guest's kernel cannot start the agent: the guest kernel panicked: "


@pytest.mark.parametrize(
    ("change", "message", "errno", "hint"),
    [
        (without_init, NO_AGENT + "VFS: Unable to mount root fs on unknown-block(", None, "msb doctor"),
        (with_garbage("init"), NO_AGENT + "No working init found.", 8, "msb doctor"),
        (
            with_garbage("virtio_blk"),
            "the kernel module 006-virtio_blk.ko cannot be loaded: Exec format error (os error 8)",
            8,
            "msb doctor",
        ),
    ],
    ids=["no agent", "damaged agent", "damaged module"],
)
async def test_a_damaged_initramfs_is_told(busybox, name, initramfs, change, message, errno, hint):
    initramfs(change)
    error = await fails(name, image=busybox)
    assert error.message.startswith(message)
    assert (error.stage, error.errno) == ("build_vm", errno)
    assert hint in error.hint


async def test_an_unreadable_image_is_reported(busybox, name, session_home):
    context = Context.current()
    image = await context.images.pull(busybox, policy="never")
    good = image.rootfs.read_bytes()
    image.rootfs.chmod(0o600)
    image.rootfs.write_bytes(b"\0" * len(good))
    try:
        error = await fails(name, image=busybox)
    finally:
        image.rootfs.write_bytes(good)
    assert error.message == "the image (/dev/vda, squashfs) cannot be mounted: Invalid argument (os error 22)"
    assert (error.stage, error.errno) == ("image", 22)
    assert error.hint.startswith("the image in the cache is damaged")


@pytest.fixture
async def upper(busybox, name, session_home):
    """The writable layer of a stopped sandbox, which is removed afterwards."""
    await (await Sandbox.create(name, image=busybox)).stop()
    yield Home.open().sandbox(name).upper
    await Sandbox.remove(name)


async def start_fails(name):
    with pytest.raises(BootError) as caught:
        await Sandbox.start(name)
    assert (await Sandbox.get(name)).status == "stopped"
    return caught.value


async def test_a_damaged_writable_layer_is_reported(name, upper):
    with upper.open("r+b") as file:
        file.write(b"\0" * 65536)
    error = await start_fails(name)
    assert error.message == (
        "the writable layer (/dev/vdb, ext4) cannot be mounted: Invalid argument (os error 22)"
    )
    assert (error.stage, error.errno) == ("mount", 22)
    assert error.hint.startswith("the sandbox's writable layer is damaged")


async def test_a_disk_that_another_has_is_named(name, upper):
    with upper.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        started = time.monotonic()
        error = await start_fails(name)
        assert time.monotonic() - started < 3
    assert error.message == f'disk image "{upper}" is already attached with an incompatible disk mode'
    assert (error.stage, error.errno) == ("mount", errno.EAGAIN)
    assert error.hint.startswith("stop the sandbox that uses the disk")
    assert isinstance(error.__cause__, DiskInUseError)


async def test_a_disk_that_cannot_be_opened_is_named(name, upper):
    upper.unlink()
    shutil.copy(shutil.which("sleep"), upper)
    program = subprocess.Popen([upper, "1000"])  # which nobody may write to, whoever asks
    try:
        error = await start_fails(name)
    finally:
        program.kill()
        program.wait()
    assert error.message == f"open disk image lock {upper}: Text file busy (os error 26)"
    assert (error.stage, error.errno) == ("mount", errno.ETXTBSY)


async def test_a_machine_that_is_killed_while_it_boots_is_told_at_once(busybox, name, session_home):
    creating = asyncio.ensure_future(Sandbox.create(name, image=busybox))
    while not (found := audit.machines(session_home)):
        await asyncio.sleep(0.02)
    os.kill(found.pop(), signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(BootError) as caught:
        await creating
    assert time.monotonic() - killed < 1
    assert caught.value.message.startswith("QEMU was killed by SIGKILL before the guest was ready")
    assert caught.value.stage == "build_vm"
    assert caught.value.hint == "the host may be short of memory: its `dmesg` says so"
    assert (await Sandbox.get(name)).status == "stopped"
    await Sandbox.remove(name)


async def test_an_image_without_a_shell_boots_and_says_what_is_missing(session_home, name, tmp_path):
    archive = busybox_archive(tmp_path / "i.tar", without=("bin/sh", "bin/busybox"), reference="test/empty")
    await Image.load(archive)
    async with await Sandbox.create(name, image="test/empty") as sandbox:
        with pytest.raises(
            MicrosandboxError, match=r'exec failed: spawn "/bin/sh": No such file or directory'
        ):
            await sandbox.shell("true")
    await Image.remove("test/empty")


async def test_less_memory_than_its_kernel_takes_is_told_without_a_machine(busybox, name):
    error = await fails(name, image=busybox, memory=24)
    assert error.message.startswith("the guest ran out of memory: it has 24 MiB, its kernel alone takes ")
    assert (error.stage, error.errno) == ("build_vm", errno.ENOMEM)
    assert error.hint.startswith("give it more memory")


async def test_a_guest_that_runs_out_of_memory_is_told(busybox, name):
    context = Context.current()
    needed = -(-(await prepare_host(context)).kernel.memory_needed() // MIB)
    error = await fails(name, image=busybox, memory=needed)
    assert error.message.startswith("the guest ran out of memory: the guest kernel panicked: ")
    assert (error.stage, error.errno) == ("build_vm", errno.ENOMEM)


async def test_more_memory_than_qemu_takes_is_reported_with_its_words(busybox, name):
    error = await fails(name, image=busybox, memory=2**31)
    assert error.message.startswith("QEMU failed: ")
    assert error.stage == "build_vm"


async def test_a_writable_layer_too_large_for_the_host(busybox, name):
    with pytest.raises(InvalidConfigError, match="oci upper_size of 2147483648 MiB"):
        await Sandbox.create(name, image=Image.oci(busybox, upper_size_mib=2**31))
    assert name not in [one.name for one in await Sandbox.list()]


async def test_a_missing_qemu_names_its_package(busybox, name, monkeypatch):
    from microsandbox import tools

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tools, "_EXTRA_PATH", ())
    with pytest.raises(PrerequisiteError, match="apt-get install qemu-system"):
        await Sandbox.create(name, image=busybox)
    assert name not in [one.name for one in await Sandbox.list()]


async def test_a_boot_error_is_forgotten_by_the_next_good_boot(busybox, name, session_home):
    record = session_home / "sandboxes" / name / "logs" / "boot-error.json"
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.stop()
    record.write_text(json.dumps({"t": "", "stage": "other", "errno": None, "message": "old"}))
    sandbox = await Sandbox.start(name)
    assert not record.exists()
    await sandbox.kill()
    await Sandbox.remove(name)


async def test_the_logs_tell_what_happened(busybox, name, session_home):
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.stop()
    logs = session_home / "sandboxes" / name / "logs"
    runtime = (logs / "runtime.log").read_text()
    assert "QEMU" in runtime
    assert "milliseconds since create: create 0, " in runtime
    assert (logs / "kernel.log").exists()
    assert {entry.stat().st_mode & 0o077 for entry in os.scandir(logs)} == {0}
    await Sandbox.remove(name)


async def test_a_missing_image_asks_no_registry_when_told_so(session_home, name):
    with pytest.raises(MicrosandboxError, match="image error: image not cached: test/none"):
        await asyncio.wait_for(Sandbox.create(name, image="test/none", pull_policy="never"), 5)
