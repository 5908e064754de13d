"""Commands in a real sandbox: exit codes, streams, input, terminals, users, limits, time."""

import asyncio
import time

import pytest
import pytest_asyncio

from microsandbox import ExecFailedError, ExecTimeoutError, Rlimit, Sandbox, Stdin
from microsandbox.errors import MicrosandboxError

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(busybox):
    async with await Sandbox.create(
        "exec", image=busybox, env={"FROM_SANDBOX": "yes"}, scripts={"greet": "#!/bin/sh\necho hello $1\n"}
    ) as sandbox:
        yield sandbox


async def sh(sandbox, script, **options):
    return await sandbox.exec("sh", ["-c", script], **options)


async def test_output_and_exit_code(sandbox):
    output = await sh(sandbox, "echo out; echo err >&2; exit 7")
    assert (output.exit_code, output.success) == (7, False)
    assert (output.stdout_text, output.stderr_text) == ("out\n", "err\n")
    assert (output.stdout_bytes, output.stderr_bytes) == (b"out\n", b"err\n")


async def test_death_by_a_signal_is_minus_one(sandbox):
    assert (await sh(sandbox, "kill -9 $$")).exit_code == -1


@pytest.mark.parametrize(
    ("cmd", "options", "kind", "text"),
    [
        (
            "no-such-command",
            {},
            "not_found",
            'spawn "no-such-command": No such file or directory (os error 2)',
        ),
        ("/etc/passwd", {}, "permission_denied", "Permission denied"),
        ("/tmp", {}, "permission_denied", "Permission denied"),
        ("true", {"cwd": "/nowhere"}, "bad_cwd", "/nowhere"),
        ("true", {"user": "nobody-here"}, "other", "exec session error: guest user not found: nobody-here"),
        ("true", {"user": "root:no-group"}, "other", "guest group not found: no-group"),
        ("true", {"user": ":demo"}, "other", "user spec has empty user"),
        ("true", {"user": "demo:"}, "other", "user spec has empty group"),
    ],
)
@pytest.mark.parametrize("tty", [False, True])
async def test_what_cannot_be_started_says_why(sandbox, cmd, options, kind, text, tty):
    with pytest.raises(ExecFailedError) as caught:
        await sandbox.exec(cmd, tty=tty, **options)
    assert text in str(caught.value)
    assert caught.value.kind == kind


async def test_a_failing_start_is_the_only_event_of_a_stream(sandbox):
    handle = await sandbox.exec_stream("no-such-command")
    [event] = [event async for event in handle]
    assert (event.event_type, event.code) == ("failed", 2)
    assert b"No such file or directory" in event.data


async def test_environment(sandbox):
    output = await sandbox.exec("env", env={"MINE": "1", "PATH": "/bin:/usr/bin"})
    values = dict(line.split("=", 1) for line in output.stdout_text.splitlines())
    assert values["MINE"] == "1"
    assert values["FROM_SANDBOX"] == "yes"
    assert values["PATH"] == "/.msb/scripts:/bin:/usr/bin"
    assert values["HOME"] == "/root"


async def test_scripts_are_called_by_name(sandbox):
    assert (await sandbox.exec("greet", ["you"])).stdout_text == "hello you\n"


async def test_shell(sandbox):
    assert (await sandbox.shell("echo $((6 * 7)) | cat")).stdout_text == "42\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, "0 0 0 /root"),
        ("demo", "1000 1000 1000 63 /home/demo"),
        ("1000", "1000 1000 1000 63 /home/demo"),
        ("1000:63", "1000 63 63 /home/demo"),
        ("demo:audio", "1000 63 63 /home/demo"),
        ("4321", "4321 0 0 /"),
        ("4321:4321", "4321 4321 4321 /"),
    ],
)
async def test_users(sandbox, user, expected):
    script = "echo $(id -u) $(id -g) $(id -G) ${HOME:-/}"
    words = (await sh(sandbox, script, user=user)).stdout_text.split()
    uid, gid, *groups, home = words
    assert [uid, gid, home] == [expected.split()[0], expected.split()[1], expected.split()[-1]]
    assert set(expected.split()[2:-1]) <= set(groups)


async def test_working_directory(sandbox):
    assert (await sandbox.exec("pwd")).stdout_text == "/\n"
    assert (await sandbox.exec("pwd", cwd="/work")).stdout_text == "/work\n"


async def test_input_is_at_its_end_unless_given(sandbox):
    assert (await asyncio.wait_for(sandbox.exec("cat"), 10)).stdout_bytes == b""


async def test_input_given_as_bytes(sandbox):
    data = bytes(range(256)) * 20_000  # more than any buffer on the way
    assert (await sandbox.exec("cat", stdin=data)).stdout_bytes == data


async def test_input_through_a_pipe(sandbox):
    handle = await sandbox.exec_stream("cat", stdin=Stdin.pipe())
    sink = handle.take_stdin()
    assert handle.take_stdin() is None
    await sink.write(b"one\n")
    received = b""
    async for event in handle:
        if event.event_type == "stdout":
            received += event.data
            if received == b"one\n":
                await sink.write(b"two\n")
                await sink.close()
        last = event
    assert received == b"one\ntwo\n"
    assert (last.event_type, last.code) == ("exited", 0)


async def test_output_streams_as_it_happens(sandbox):
    handle = await sandbox.exec_stream("sh", ["-c", "echo first; sleep 1; echo second"])
    times = {}
    async for event in handle:
        if event.event_type == "stdout":
            times[event.data] = time.monotonic()
    assert times[b"second\n"] - times[b"first\n"] > 0.5


async def test_a_terminal(sandbox):
    output = await sandbox.exec("sh", ["-c", "tty; stty size; echo err >&2; echo $TERM"], tty=True)
    lines = output.stdout_text.replace("\r\n", "\n").splitlines()
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:3] == ["24 80", "err"]
    assert lines[3]
    assert output.stderr_bytes == b""


async def test_a_terminal_can_be_resized(sandbox):
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done"
    handle = await sandbox.exec_stream("sh", ["-c", script], tty=True)
    seen = b""
    async for event in handle:
        if event.event_type == "stdout":
            seen += event.data
            if seen.strip() == b"ready":
                await handle.resize(50, 132)
    assert b"50 132" in seen


async def test_a_terminals_input_and_interrupt(sandbox):
    handle = await sandbox.exec_stream("cat", tty=True, stdin=Stdin.pipe())
    sink = handle.take_stdin()
    await sink.write(b"typed\n\x04")
    assert (await handle.collect()).stdout_bytes.count(b"typed") == 2  # the echo, and cat's


async def test_signals(sandbox):
    handle = await sandbox.exec_stream(
        "sh", ["-c", "trap 'echo got it; exit 3' TERM; echo up; sleep 100 >/dev/null 2>&1 & wait"]
    )
    async for event in handle:
        if event.event_type == "stdout" and event.data == b"up\n":
            await handle.signal(15)
        last = event
    assert (last.event_type, last.code) == ("exited", 3)
    await handle.kill()  # no error after the end


async def test_a_killed_command_takes_its_children_along(sandbox):
    handle = await sandbox.exec_stream("sh", ["-c", "sleep 4321 & echo up; wait"])
    async for event in handle:
        if event.event_type == "stdout":
            await handle.kill()
    assert (await sh(sandbox, "ps | grep 'sleep 432[1]'")).exit_code == 1


async def test_timeout_kills_and_says_so(sandbox):
    started = time.monotonic()
    with pytest.raises(ExecTimeoutError, match=r"^exec timed out after 500ms$"):
        await sandbox.exec("sleep", ["4322"], timeout=0.5)
    assert time.monotonic() - started < 5
    assert (await sh(sandbox, "ps | grep 'sleep 432[2]'")).exit_code == 1


async def test_limits(sandbox):
    output = await sh(
        sandbox,
        "ulimit -n; ulimit -c",
        rlimits=[Rlimit.nofile(77), {"resource": "core", "soft": 0, "hard": 0}],
    )
    assert output.stdout_text.split() == ["77", "0"]


async def test_wait_returns_code_and_success(sandbox):
    assert await (await sandbox.exec_stream("true")).wait() == (0, True)
    handle = await sandbox.exec_stream("false")
    assert await handle.wait() == (1, False)
    with pytest.raises(MicrosandboxError, match="exec session ended without exit event"):
        await handle.wait()


async def test_output_that_looks_like_a_control_message_is_output(sandbox):
    assert (await sandbox.exec("echo", ["core.flow"])).stdout_text == "core.flow\n"


async def test_many_commands_at_once(sandbox):
    outputs = await asyncio.gather(*(sandbox.exec("echo", [str(n)]) for n in range(40)))
    assert [output.stdout_text for output in outputs] == [f"{n}\n" for n in range(40)]


async def test_a_background_child_that_holds_the_output_delays_the_end(sandbox):
    started = time.monotonic()
    assert (await sh(sandbox, "(sleep 1; echo late) & echo early")).stdout_text == "early\nlate\n"
    assert time.monotonic() - started > 0.8


async def test_orphans_are_reaped(sandbox):
    await sh(sandbox, "for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.1 &) ; done")
    await asyncio.sleep(0.5)  # the orphans' own life
    output = await sh(sandbox, "ps -o stat,comm | grep -c '^Z' || true")
    assert output.stdout_text.strip() == "0"


async def test_a_flood_does_not_delay_another_command_and_costs_no_memory(sandbox):
    async def agent_kib():
        status = await sandbox.fs.read_text("/proc/1/status")
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    before = await agent_kib()
    flood = await sandbox.exec_stream("sh", ["-c", "cat /dev/zero"])
    await flood.recv()  # it has begun; from here on nobody reads it
    delays = []
    for _ in range(10):
        started = time.monotonic()
        assert (await sandbox.exec("echo", ["answer"])).stdout_text == "answer\n"
        delays.append(time.monotonic() - started)
    assert max(delays) < 2, f"echo beside a flood took {delays}"
    assert await agent_kib() < before + 4096
    await flood.kill()
    assert await flood.wait() == (-1, False)


async def test_a_gibibyte_arrives_whole_beside_answers(sandbox):
    count = 1 << 30
    flood = await sandbox.exec_stream("sh", ["-c", f"dd if=/dev/zero bs=64k count={count >> 16} 2>/dev/null"])
    received, answers = 0, []

    async def ask():
        while True:
            started = time.monotonic()
            await sandbox.exec("echo", ["x"])
            answers.append(time.monotonic() - started)

    asking = asyncio.ensure_future(ask())
    async for event in flood:
        if event.event_type == "stdout":
            received += len(event.data)
    asking.cancel()
    await asyncio.wait((asking,))
    assert received == count
    assert max(answers) < 3, f"slowest answer of {len(answers)}: {max(answers):.1f} s"
