"""Boots that fail: the cause reaches the caller, quickly, and nothing is left but a stopped row."""

import asyncio
import json
import os
import shutil
import time

import pytest

from microsandbox import Image, Sandbox
from microsandbox.errors import BootError, InvalidConfigError, MicrosandboxError, PrerequisiteError
from microsandbox.sandbox.context import Context
from tests.images import busybox_archive

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean", "cold")]


async def fails(name, **options):
    started = time.monotonic()
    with pytest.raises(MicrosandboxError) as caught:
        await Sandbox.create(name, **options)
    assert time.monotonic() - started < 20, "a failure must not wait for a time-out"
    assert (await Sandbox.get(name)).status == "stopped"
    await Sandbox.remove(name)
    return caught.value


@pytest.fixture
def damaged_kernel(session_home, monkeypatch):
    """The home with a private copy of the kernel directory, to be damaged."""

    def make(damage):
        link = session_home / "kernels"
        original = link.resolve()
        link.unlink()
        shutil.copytree(original, link, symlinks=True)
        restore.append(original)
        for path in link.rglob("initramfs"):
            path.write_bytes(damage(path.read_bytes()))

    restore = []
    yield make
    if restore:
        shutil.rmtree(session_home / "kernels")
        (session_home / "kernels").symlink_to(restore[0])


async def test_a_kernel_panic_is_reported_with_its_text(busybox, name, damaged_kernel):
    damaged_kernel(lambda content: b"\0" * len(content))
    error = await fails(name, image=busybox)
    assert isinstance(error, BootError)
    assert "the guest kernel panicked: " in str(error)


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
    assert isinstance(error, BootError)
    assert error.stage in ("image", "mount")
    assert "/dev/vda" in str(error)


async def test_an_image_without_a_shell_boots_and_says_what_is_missing(session_home, name, tmp_path):
    archive = busybox_archive(tmp_path / "i.tar", without=("bin/sh", "bin/busybox"), reference="test/empty")
    await Image.load(archive)
    async with await Sandbox.create(name, image="test/empty") as sandbox:
        with pytest.raises(
            MicrosandboxError, match=r'exec failed: spawn "/bin/sh": No such file or directory'
        ):
            await sandbox.shell("true")
    await Image.remove("test/empty")


async def test_too_little_memory_is_reported(busybox, name):
    error = await fails(name, image=busybox, memory=24)
    assert isinstance(error, BootError)
    assert str(error).startswith(f'failed to start "{name}": ')


async def test_more_memory_than_qemu_takes_is_reported_with_its_words(busybox, name):
    error = await fails(name, image=busybox, memory=2**31)
    assert isinstance(error, BootError)
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
