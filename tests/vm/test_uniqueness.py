"""What two guests of one template must never share: random numbers, names, and the wrong time."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microsandbox import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

SOURCE = Path(__file__).with_name("unique.c")
#: Seconds by which a guest's clock may be wrong.
CLOCK_TOLERANCE = 0.05
FILES = {
    "uuid": "/proc/sys/kernel/random/uuid",
    "boot id": "/proc/sys/kernel/random/boot_id",
    "machine id": "/etc/machine-id",
    "hostname": "/etc/hostname",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """unique.c as a static program for guests."""
    binary = tmp_path_factory.mktemp("unique") / "unique"
    target = f"{os.uname().machine}-linux-musl"
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        target,
        "-static",
        "-O1",
        "-o",
        binary,
        SOURCE,
    ]
    subprocess.run(command, check=True)
    return str(binary)


async def bring(program, sandbox):
    await sandbox.fs.copy_from_host(program, "/root/unique")
    assert (await sandbox.exec("chmod", ["+x", "/root/unique"])).success


async def identity(sandbox, program):
    """What this guest has to itself, by name."""
    await bring(program, sandbox)
    found = {}
    script = "/root/unique && head -c 32 /dev/urandom | md5sum && hostname"
    output = await sandbox.shell(script)
    assert output.success, output.stderr_text
    *lines, urandom, hostname = output.stdout_text.splitlines()
    for line in lines:
        key, value = line.split()
        found[key] = value
    found |= {"urandom": urandom, "kernel's hostname": hostname}
    for key, path in FILES.items():
        found[key] = (await sandbox.fs.read_text(path)).strip()
    return found


def assert_nothing_is_shared(found):
    for what in found[0]:
        values = [one[what] for one in found]
        assert len(set(values)) == len(values), f"guests share their {what}: {values}"
        assert all(values), what


async def test_guests_resumed_at_the_same_time_share_nothing(busybox, name, program):
    names = [f"{name}-{number}" for number in range(4)]

    async def identity_of(one):
        async with await Sandbox.create(one, image=busybox) as sandbox:
            return await identity(sandbox, program)

    found = await asyncio.gather(*map(identity_of, names))
    assert [one["hostname"] for one in found] == names
    assert_nothing_is_shared(found)


async def test_guests_resumed_one_after_the_other_share_nothing(busybox, name, program):
    found = []
    for number in range(2):
        async with await Sandbox.create(f"{name}-{number}", image=busybox) as sandbox:
            found.append(await identity(sandbox, program))
    assert_nothing_is_shared(found)


async def test_a_sandbox_that_is_started_again_is_another_guest(busybox, name, program):
    """It keeps its name, and gets what a boot would give it."""
    sandbox = await Sandbox.create(name, image=busybox)
    before = await identity(sandbox, program)
    await sandbox.stop()
    async with await Sandbox.start(name) as sandbox:
        after = await identity(sandbox, program)
    kept = ("hostname", "kernel's hostname")
    assert [before.pop(key) for key in kept] == [after.pop(key) for key in kept]
    assert_nothing_is_shared([before, after])


async def clock_offset(sandbox):
    """By how many seconds the guest's clock is ahead of the host's: at least, and at most."""
    least, most = -float("inf"), float("inf")
    for _ in range(10):
        before = time.time()
        clock = float((await sandbox.exec("/root/unique", ["clock"])).stdout_text.split()[1])
        least, most = max(least, clock - time.time()), min(most, clock - before)
    return least, most


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_clock_is_right_from_the_start(busybox, name, program, restarted):
    sandbox = await Sandbox.create(name, image=busybox)
    if restarted:
        await sandbox.stop()
        sandbox = await Sandbox.start(name)
    async with sandbox:
        await bring(program, sandbox)
        least, most = await clock_offset(sandbox)
    assert -CLOCK_TOLERANCE < least <= most < CLOCK_TOLERANCE
