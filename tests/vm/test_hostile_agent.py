"""A guest whose agent is the enemy: the host is not harmed, does not grow, and says what happened."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microsandbox import Sandbox
from microsandbox.agent.protocol import MessageType, encode
from microsandbox.errors import AgentClientError, BootError, MicrosandboxError
from microsandbox.store.home import Home
from microsandbox.vmm.kernel import prepare_kernel
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.fault, pytest.mark.usefixtures("clean", "cold")]

SOURCE = Path(__file__).with_name("hostile_agent.c")
GARBAGE, HUGE_FRAME, HELLO_FLOOD, READY_FLOOD, READY_GARBAGE = range(5)
FRAMES = {
    "HELLO": encode(0, MessageType.BOOT_HELLO, {"agent_version": "evil"}),
    "RESOLVED": encode(0, MessageType.INIT_RESOLVED, {"default_user": {"uid": 0, "gid": 0}}),
    "READY": encode(0, MessageType.READY, {"boot_time_ns": 1, "init_time_ns": 1, "ready_time_ns": 1}),
    "FLOOD": encode(77, MessageType.EXEC_STDOUT, {"data": bytes(60_000)}),
}


@pytest.fixture
def hostile_guest(session_home, tmp_path, monkeypatch):
    """Make the home's kernel boot the enemy instead of agentd."""
    arrays = (
        f"static const unsigned char {name}[] = {{{','.join(map(str, f.raw))}}};"
        for name, f in FRAMES.items()
    )
    (tmp_path / "frames.h").write_text("\n".join(arrays))
    original = (session_home / "kernels").resolve()

    def make(worst):
        binary = tmp_path / "agent"
        target = f"{os.uname().machine}-linux-musl"
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-static", "-O1"]
        command = [*compiler, f"-DWORST={worst}", f"-I{tmp_path}", "-o", binary, SOURCE]
        subprocess.run(command, check=True)
        monkeypatch.setattr("microsandbox._guest.agent_binary", lambda _machine=None: binary)
        (session_home / "kernels").unlink()
        (session_home / "kernels").mkdir()
        for prepared in original.glob("*/manifest"):
            (session_home / "kernels" / prepared.parent.name).symlink_to(prepared.parent)
        prepare_kernel(Home.open())

    yield make
    subprocess.run(["rm", "-rf", session_home / "kernels"], check=True)
    (session_home / "kernels").symlink_to(original)


@pytest.mark.parametrize("worst", [GARBAGE, HUGE_FRAME, HELLO_FLOOD])
async def test_garbage_instead_of_a_boot_fails_the_boot_with_a_reason(busybox, name, hostile_guest, worst):
    hostile_guest(worst)
    started = time.monotonic()
    with pytest.raises(BootError, match=r"agent protocol|the agent sent"):
        await Sandbox.create(name, image=busybox)
    assert time.monotonic() - started < 20
    assert (await Sandbox.get(name)).status == "stopped"
    await Sandbox.remove(name)


async def test_garbage_after_the_boot_ends_the_sandbox_and_says_why(
    busybox, name, hostile_guest, session_home
):
    hostile_guest(READY_GARBAGE)
    try:
        sandbox = await Sandbox.create(name, image=busybox)
        result = await asyncio.wait_for(sandbox.wait_until_stopped(), 15)
        assert result.status in ("stopped", "crashed")
    except MicrosandboxError:  # it may end before its first client has shaken hands
        audit.wait_clean(session_home, within=10)
    log = (session_home / "sandboxes" / name / "logs" / "runtime.log").read_text()
    assert "the guest broke the agent protocol" in log
    await Sandbox.remove(name)


async def test_a_flood_of_frames_for_nobody_grows_nothing(busybox, name, hostile_guest, session_home):
    hostile_guest(READY_FLOOD)
    sandbox = await Sandbox.create(name, image=busybox)
    [supervisor] = audit.supervisors(session_home)
    sizes = []
    for _ in range(4):
        await asyncio.sleep(1)  # of flood
        sizes.append(int(Path(f"/proc/{supervisor}/statm").read_text().split()[1]) * 4 >> 10)
    assert max(sizes) < 80, f"MiB: {sizes}"
    waiting = asyncio.ensure_future(sandbox.exec("true"))
    await sandbox.kill()
    with pytest.raises(AgentClientError):
        await asyncio.wait_for(waiting, 5)
    await Sandbox.remove(name)
