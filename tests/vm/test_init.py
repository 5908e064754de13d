"""PID 1 handed over to a program of the image, on real machines: a shell and busybox's init.

What systemd makes of it is in test_systemd.py.
"""

import asyncio
import json
import sqlite3
import time

import pytest

from microsandbox import Image, InitConfig, Sandbox
from microsandbox.errors import AgentClientError, BootError, InvalidConfigError
from tests.images import busybox_archive
from tests.vm.test_lifecycle import run_of

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

#: Heeds no signal, and exits when it is told to.
PATIENT_INIT = """#!/bin/sh
while ! test -e /init.end; do sleep 0.05; done
exit "$(cat /init.end)"
"""
#: Covers what was prepared below /run, as early as an init can.
COVERING_INIT = "#!/bin/sh\nmount -t tmpfs tmpfs /run\nexec /opt/patient\n"
#: Heeds no signal, writes all the time, and has a deleted file open: its file system cannot become read-only.
WRITING_INIT = """#!/bin/sh
exec 3>> /written 4> /deleted
rm /deleted
while :; do echo "$((n += 1))" >&3; done
"""
FILES = {
    "opt/patient": PATIENT_INIT,
    "opt/writing": WRITING_INIT,
    "opt/covering": COVERING_INIT,
    "opt/plain": "no program\n",
    "opt/broken": "#!/no/such/interpreter\n",
    "etc/inittab": "::sysinit:/bin/touch /inittab.ran\n::shutdown:/bin/sh -c 'echo down > /shutdown.ran'\n",
}


@pytest.fixture(scope="module")
def image(session_home, tmp_path_factory):
    """busybox with several inits."""
    archive = busybox_archive(
        tmp_path_factory.mktemp("init") / "init.tar", files=FILES, reference="test/init:latest"
    )
    [reference] = asyncio.run(Image.load(archive))
    return reference


async def said(sandbox, command):
    output = await sandbox.shell(command)
    assert output.success, output.stderr_text
    return output.stdout_text


async def test_path_arguments_and_environment_arrive(image, name):
    init = InitConfig("/opt/patient", ("-x", "two words", ""), {"B": "init's", "C": "3"})
    async with await Sandbox.create(name, image=image, env={"A": "1", "B": "2"}, init=init) as sandbox:
        assert (
            await said(sandbox, "tr '\\0' '\\n' < /proc/1/cmdline")
            == "/bin/sh\n/opt/patient\n-x\ntwo words\n\n"
        )
        env = dict(
            line.split("=", 1)
            for line in (await said(sandbox, "tr '\\0' '\\n' < /proc/1/environ")).splitlines()
        )
        assert {"A": "1", "B": "init's", "C": "3"}.items() <= env.items()
        assert env["PATH"] == "/.msb/scripts:/bin:/sbin:/usr/bin:/usr/sbin"
        assert not [key for key in env if key.startswith("MSB_")]
        assert "Max open files            1024                 524288" in await said(
            sandbox, "cat /proc/1/limits"
        )


async def test_the_agent_is_a_process_of_its_own_and_commands_are_as_ever(image, name):
    async with await Sandbox.create(name, image=image, init="/opt/patient") as sandbox:
        [agent] = (await said(sandbox, "echo $PPID")).split()
        assert agent != "1"
        status = await said(
            sandbox, f"cat /proc/{agent}/stat /proc/{agent}/cgroup /proc/{agent}/oom_score_adj"
        )
        fields, cgroup, oom = status.splitlines()
        assert fields.split()[3] == "1", "its parent is the init"
        assert fields.split()[5] == agent, "it leads its own session"
        assert (cgroup, oom) == ("0::/microsandbox", "-1000")
        mine = await said(
            sandbox, "cat /proc/self/oom_score_adj; grep SigBlk /proc/self/status; cat /proc/1/cgroup"
        )
        assert mine == "0\nSigBlk:\t0000000000000000\n0::/\n"
        assert await said(sandbox, "kill -TERM $PPID; sleep 0.2; echo there") == "there\n"
        assert (await sandbox.exec("sh", ["-c", "exit 7"])).exit_code == 7
        await sandbox.fs.write("/file", b"x" * 100_000)
        assert len(await sandbox.fs.read("/file")) == 100_000
        assert await said(sandbox, "grep -c ' /run ' /proc/mounts; cat /run/microsandbox/agentd.log") == "1\n"


async def test_it_boots_without_a_template_too(image, name, cold):
    async with await Sandbox.create(name, image=image, init="/opt/patient") as sandbox:
        assert await said(sandbox, "cat /proc/1/comm") == "patient\n"


async def test_an_init_may_mount_over_run_first_thing(image, name):
    async with await Sandbox.create(name, image=image, init="/opt/covering") as sandbox:
        await said(sandbox, "until test $(grep -c ' /run ' /proc/mounts) = 2; do sleep 0.05; done")
        assert await said(sandbox, "readlink /proc/$PPID/fd/2") == "/run/microsandbox/agentd.log\n"


async def test_auto_finds_the_images_own_which_is_told_to_stop(image, name, session_home):
    sandbox = await Sandbox.create(name, image=image, init="auto")
    assert await said(sandbox, "cat /proc/1/comm") == "init\n"
    await said(sandbox, "while ! test -e /inittab.ran; do sleep 0.05; done; echo kept > /file")
    started = time.monotonic()
    await sandbox.stop()
    assert time.monotonic() - started < 5, "it does not handle systemd's signal, so it is not waited for"
    assert run_of(session_home, name)[:2] == ("Terminated", "ShutdownRequested")

    again = await Sandbox.start(name)
    assert await said(again, "cat /proc/1/comm /file /shutdown.ran") == "init\nkept\ndown\n"
    await again.stop()
    await Sandbox.remove(name)


async def assert_kept(name):
    """What was written to /file is there after another start; the sandbox goes then."""
    again = await Sandbox.start(name)
    assert await said(again, "cat /file") == "kept\n"
    await again.stop()
    await Sandbox.remove(name)


async def test_an_init_that_heeds_no_signal_costs_a_moment_and_the_disk_is_flushed(image, name):
    sandbox = await Sandbox.create(name, image=image, init="/opt/patient")
    await said(sandbox, "echo kept > /file")
    started = time.monotonic()
    await sandbox.stop()
    assert time.monotonic() - started < 3
    await assert_kept(name)


def has_unfinished_journal(disk):
    """The ext4 feature "recover": mounted and neither unmounted, made read-only nor frozen since."""
    with disk.open("rb") as file:
        file.seek(1024 + 0x60)
        return bool(int.from_bytes(file.read(4), "little") & 0x4)


async def test_an_init_that_goes_on_writing_leaves_a_clean_disk(image, name, session_home):
    sandbox = await Sandbox.create(name, image=image, init="/opt/writing")
    await said(sandbox, "echo kept > /file; sync")
    disk = session_home / "sandboxes" / name / "upper.ext4"
    assert has_unfinished_journal(disk)
    started = time.monotonic()
    await sandbox.stop()
    assert time.monotonic() - started < 5
    assert not has_unfinished_journal(disk), "writes were cut off"
    await assert_kept(name)


async def test_commands_are_heard_while_the_init_has_its_time(image, name):
    sandbox = await Sandbox.create(name, image=image, init="/opt/patient")
    stream = await sandbox.shell_stream("trap 'echo told' TERM; while :; do echo tick; sleep 0.1; done")
    heard = []

    async def listen():
        async for event in stream:
            if event.event_type == "stdout":
                heard.extend(event.data.decode().split())

    listener = asyncio.create_task(listen())
    while "tick" not in heard:
        await asyncio.sleep(0.05)
    await sandbox.stop()
    await asyncio.gather(listener, return_exceptions=True)
    assert heard[heard.index("told") :].count("tick") > 5, "the init has 1.5 s"
    await Sandbox.remove(name)


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ("/no/init", "handoff init binary not found at /no/init: No such file or directory (os error 2)"),
        ("/opt", "handoff init path is not a regular file: /opt"),
        ("/opt/plain", "handoff init binary is not executable: /opt/plain"),
        (
            "/opt/broken",
            "handoff init /opt/broken cannot be executed: No such file or directory (os error 2)",
        ),
    ],
)
async def test_what_cannot_be_an_init_is_a_boot_error_that_names_it(image, name, init, reason):
    with pytest.raises(BootError) as caught:
        await Sandbox.create(name, image=image, init=init)
    assert reason in str(caught.value)
    assert caught.value.stage == "config"
    await Sandbox.remove(name)


async def test_what_no_message_has_room_for_is_refused_before_there_is_a_sandbox(image, name, session_home):
    init = InitConfig("/opt/patient", ("x" * ((2 << 20) - 100),), {})
    with pytest.raises(InvalidConfigError, match="too large together: [0-9]+ bytes"):
        await Sandbox.create(name, image=image, init=init, scripts={"run": "x" * ((3 << 20) - 100)})
    assert name not in [row.name for row in await Sandbox.list()]
    assert not (session_home / "sandboxes" / name).exists()


async def test_auto_without_any_names_where_it_looked(session_home, name, tmp_path):
    archive = busybox_archive(tmp_path / "none.tar", without=("sbin/init",), reference="test/no-init:latest")
    [reference] = await Image.load(archive)
    with pytest.raises(
        BootError, match="auto: no init binary found, checked: /sbin/init, /lib/systemd/systemd"
    ):
        await Sandbox.create(name, image=reference, init="auto")
    await Sandbox.remove(name)


@pytest.mark.parametrize(
    ("code", "status", "reason", "detail"),
    [(0, "stopped", "Completed", None), (3, "crashed", "Failed", "PID 1 exited with status 3")],
)
async def test_an_init_that_exits_ends_the_machine(image, name, session_home, code, status, reason, detail):
    sandbox = await Sandbox.create(name, image=image, init="/opt/patient")
    await said(sandbox, f"echo {code} > /init.new; mv /init.new /init.end")
    await sandbox.wait_until_stopped()
    assert (await Sandbox.get(name)).status == status
    assert run_of(session_home, name)[1] == reason
    with sqlite3.connect(session_home / "db" / "msb.db") as connection:
        [said_why] = connection.execute("SELECT termination_detail FROM run ORDER BY id DESC").fetchone()
    assert detail is None or detail in said_why
    await Sandbox.remove(name)


async def lose_the_agent(sandbox):
    """Have a command kill the agent that an init left alone, and see those told who wait for it."""
    waiting = asyncio.ensure_future(sandbox.exec("sleep", ["1000"]))
    started = time.monotonic()
    for lost in (sandbox.shell("kill -9 $PPID; sleep 1000"), waiting, sandbox.exec("true")):
        with pytest.raises(AgentClientError, match="the agent port was closed"):
            await lost
    assert time.monotonic() - started < 3


async def test_the_end_of_the_agent_is_said_at_once_and_that_of_the_sandbox(image, name, session_home):
    sandbox = await Sandbox.create(name, image=image, init="/opt/patient")
    await lose_the_agent(sandbox)
    await asyncio.wait_for(sandbox.wait_until_stopped(), 10)
    assert run_of(session_home, name)[1] == "InternalError"
    await Sandbox.remove(name)


async def test_a_sandbox_without_its_agent_is_stopped_soon(image, name, session_home):
    sandbox = await Sandbox.create(name, image=image, init="/opt/patient")
    await lose_the_agent(sandbox)
    started = time.monotonic()
    await sandbox.stop()
    assert time.monotonic() - started < 4
    assert run_of(session_home, name)[1] == "ShutdownRequested"
    await Sandbox.remove(name)


def store_limit(home, name, *, soft, hard):
    limits = json.dumps([{"resource": "Nofile", "soft": soft, "hard": hard}])
    with sqlite3.connect(home / "db" / "msb.db") as connection:
        connection.execute(
            "UPDATE sandbox SET config = json_set(config, '$.rlimits', json(?)) WHERE name = ?",
            (limits, name),
        )


async def test_limits_of_a_stored_configuration_hold_for_the_init_and_for_commands(image, name, session_home):
    """No keyword of create sets them; microsandbox's documents may have them."""
    sandbox = await Sandbox.create(name, image=image, init="/opt/patient")
    await sandbox.stop()
    store_limit(session_home, name, soft=100, hard=200)
    async with await Sandbox.start(name) as again:
        assert "Max open files            100                  200 " in await said(
            again, "cat /proc/1/limits"
        )
        assert await said(again, "ulimit -n; ulimit -Hn") == "100\n200\n"


async def test_a_limit_that_cannot_be_applied_is_a_boot_error_that_names_it(image, name, session_home):
    sandbox = await Sandbox.create(name, image=image, init="/opt/patient")
    await sandbox.stop()
    store_limit(session_home, name, soft=100, hard=2**40)
    with pytest.raises(BootError) as caught:
        await Sandbox.start(name)
    assert "failed to apply rlimit nofile=100:1099511627776: Operation not permitted (os error 1)" in str(
        caught.value
    )
    await Sandbox.remove(name)
