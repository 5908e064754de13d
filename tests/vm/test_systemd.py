"""systemd as PID 1, on real machines: Debian as mmdebstrap makes it.

Under emulation it needs many seconds to come up and to end; what is waited for is its own word.
"""

import asyncio
import time

import pytest

from microsandbox import Image, Sandbox
from tests.systemd_image import systemd_archive
from tests.vm.test_lifecycle import run_of

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]


@pytest.fixture(scope="module")
def image(session_home):
    """A Debian with systemd."""
    [reference] = asyncio.run(Image.load(systemd_archive()))
    return reference


async def said(sandbox, command):
    output = await sandbox.shell(command)
    assert output.success, output.stderr_text
    return output.stdout_text


async def system_state(sandbox):
    """What systemd says of itself once it is up, with the units that failed and what is still waited for."""
    wait = "while ! test -S /run/systemd/private; do sleep 0.1; done; systemctl is-system-running --wait"
    state = await sandbox.shell(wait, timeout=90)
    units = await sandbox.shell("systemctl --failed --no-legend --plain; systemctl list-jobs --no-legend")
    return state.stdout_text.strip(), units.stdout_text


async def test_systemd_runs_stops_and_runs_again(image, name, session_home):
    sandbox = await Sandbox.create(name, image=image, init="auto", memory=1024)
    state, units = await system_state(sandbox)
    assert (state, units) == ("running", "")
    assert (await said(sandbox, "cat /proc/1/comm")).strip() == "systemd"
    assert await said(sandbox, "cat /proc/self/cgroup") == "0::/microsandbox\n"
    assert await said(sandbox, "systemctl is-active systemd-journald dbus") == "active\nactive\n"
    machine = await said(sandbox, "cat /etc/machine-id")
    await said(sandbox, "systemd-run --quiet --wait --unit=told sh -c 'echo a word for later'")
    await said(sandbox, "echo kept > /root/file")

    started = time.monotonic()
    await sandbox.stop()
    assert time.monotonic() - started < 9
    assert run_of(session_home, name)[:2] == ("Terminated", "ShutdownRequested")

    again = await Sandbox.start(name)
    assert await said(again, "cat /root/file /etc/machine-id") == f"kept\n{machine}"
    state, units = await system_state(again)
    assert (state, units) == ("running", "")
    journal = "journalctl --boot=-1 --output=cat"
    assert "a word for later" in (await said(again, f"{journal} --unit=told")).splitlines()
    assert "Reached target poweroff.target" in await said(again, journal), "it was systemd that powered off"
    await said(again, "systemctl poweroff --no-block")
    await again.wait_until_stopped()
    assert run_of(session_home, name)[1] == "Completed"
    await Sandbox.remove(name)
