"""``msb exec`` end to end: a real msb process, a real relay socket, commands that run on this host."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

MSB = [sys.executable, "-m", "microsandbox.cli"]
AGENT = Path(__file__).with_name("host_agent.py")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """The environment of a home in which a sandbox called ``box`` runs."""
    home = tmp_path_factory.mktemp("h")
    env = {**os.environ, "MSB_HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    env.pop("NO_COLOR", None)
    agent = subprocess.Popen([sys.executable, AGENT, "box"], env=env, stdout=subprocess.PIPE)
    assert agent.stdout.readline() == b"ready\n"
    yield env
    agent.kill()
    agent.wait()
    agent.stdout.close()


def msb(env, *words, **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*MSB, *words], env=env, capture_output=True, timeout=30, **options)


def start(env, *words, **options):
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*MSB, *words], env=env, **options)


def test_output_and_error_output_stay_apart_and_the_exit_code_is_the_commands(env):
    done = msb(env, "exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_a_command_that_a_signal_killed_is_255(env):
    assert msb(env, "exec", "box", "--", "sh", "-c", "kill -9 $$").returncode == 255


def test_stdin_is_forwarded_as_it_comes_and_closed_when_it_closes(env):
    process = start(env, "exec", "box", "--", "cat")
    with process:
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line  # while our end is still open
        process.stdin.close()
        assert process.wait(10) == 0


def test_an_open_stdin_does_not_hold_up_the_end(env):
    process = start(env, "exec", "box", "--", "true")
    with process:
        assert process.wait(10) == 0


@pytest.mark.parametrize("kind", ["file", "closed", "null"])
def test_every_kind_of_stdin_reaches_its_end(env, tmp_path, kind):
    source = tmp_path / "input"
    source.write_bytes(b"x" * 300_000)
    redirect = {"file": f"< {source}", "closed": "<&-", "null": "< /dev/null"}[kind]
    done = subprocess.run(
        f"{sys.executable} -m microsandbox.cli exec box -- wc -c {redirect}",
        shell=True, env=env, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    assert int(done.stdout) == (300_000 if kind == "file" else 0)


def test_a_command_that_stops_reading_does_not_end_badly(env):
    done = subprocess.run(
        f"yes | {sys.executable} -m microsandbox.cli exec box -- head -n 1",
        shell=True, env=env, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"y\n", b"")


def test_megabytes_pass_unchanged_in_both_directions(env):
    data = os.urandom(8 << 20)
    done = msb(env, "exec", "box", "--", "cat", stdin=None, input=data)
    assert done.stdout == data


def test_a_slow_reader_holds_up_the_command_and_not_our_memory(env):
    process = start(env, "exec", "box", "--", "sh", "-c", "head -c 300000000 /dev/zero; echo done >&2")
    with process:
        process.stdin.close()
        assert process.stdout.read(1) == b"\0"
        time.sleep(1.5)  # not to settle: this is how long nobody reads
        resident = next(
            int(line.split()[1])
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        process.kill()
        assert b"done" not in process.stderr.read()
    assert resident < 60_000, f"msb took {resident} KiB for output that nobody read"


def test_a_reader_that_goes_away_ends_the_command_quietly(env, tmp_path):
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -m microsandbox.cli exec box -- sh -c 'echo $$ > {tmp_path}/pid; exec yes' "
            "| head -n 1; exit ${PIPESTATUS[0]}",
        ],
        env=env, capture_output=True, timeout=30, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (b"y\n", b"", 141)
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_reaches_the_command(env, number, code):
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 3' {name}; echo up; while :; do sleep 0.05; done"
    process = start(env, "exec", "box", "--", "bash", "-c", script)
    with process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.stdout.read() == f"got {name}\n".encode()
        assert process.wait(10) == code
        assert process.stderr.read() == b""


def test_a_second_signal_kills_a_command_that_ignores_the_first(env):
    script = "trap 'echo ignored' INT; echo $$; while :; do sleep 0.05; done"
    process = start(env, "exec", "box", "--", "bash", "-c", script)
    with process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"ignored\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert gone(pid)


def test_a_timeout_kills_the_command(env):
    done = msb(env, "exec", "--timeout", "500ms", "box", "--", "sh", "-c", "echo $$; exec sleep 60")
    assert (done.stderr, done.returncode) == (b"error: exec timed out after 500ms\n", 1)
    assert gone(int(done.stdout))


@pytest.mark.parametrize(
    ("command", "code", "details"),
    [
        ("/no/such", 127, ["not found", "(ENOENT)", "which /no/such"]),
        ("/etc/passwd", 126, ["permission denied", "(EACCES)", "chmod +x /etc/passwd"]),
    ],
)
def test_a_command_that_cannot_start_is_explained(env, command, code, details):
    done = msb(env, "exec", "box", "--", command)
    text = done.stderr.decode()
    assert done.returncode == code
    assert text.startswith(f'error: failed to exec "{command}"\n  → ')
    assert all(detail in text for detail in details)


def test_environment_directory_and_missing_command(env):
    done = msb(env, "exec", "-e", "A=b=c", "-w", "/etc", "box", "--", "sh", "-c", "echo $A; pwd")
    assert done.stdout == b"b=c\n/etc\n"
    done = msb(env, "exec", "box")
    assert (done.stderr, done.returncode) == (
        b"warn: no command provided and stdin is not a terminal\n",
        0,
    )


def test_tty_without_a_terminal(env):
    done = msb(
        env, "exec", "-t", "box", "--", "sh", "-c", "test -t 1 && stty size && cat", stdin=None, input=b"hi\n"
    )
    assert b"24 80\r\n" in done.stdout
    assert done.returncode == 0


def test_a_shell_on_a_terminal_raw_resized_and_restored(env):
    """No command and a terminal on stdin: the sandbox's shell, in raw mode, as large as ours."""
    master, slave = pty.openpty()
    resize(master, 30, 100)
    before = termios.tcgetattr(slave)
    process = start(
        {**env, "PS1": "$ "}, "exec", "box", stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.write(master, b"stty size; exec sh -c 'echo rea''dy; exec cat'\n")  # a shell that Ctrl-C ends
    assert b"30 100" in read_until(master, b"ready")
    assert not termios.tcgetattr(slave)[3] & termios.ICANON
    os.write(master, b"\x03")  # raw: Ctrl-C is a byte for the guest, and ends its cat
    assert process.wait(10) == 255
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_the_terminal_is_restored_when_we_are_terminated(env):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = start(
        env, "exec", "-t", "box", "--", "sh", "-c", "echo up; exec cat",
        stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    read_until(master, b"up")
    assert termios.tcgetattr(slave) != before
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_a_window_that_changes_changes_in_the_guest(env):
    master, slave = pty.openpty()
    resize(master, 24, 80)
    script = (
        "trap 'stty size' WINCH; echo up; until stty size | grep -q '40 120'; do sleep 0.05; done; stty size"
    )
    process = start(
        env, "exec", "-t", "box", "--", "bash", "-c", script, stdin=slave, stdout=slave, stderr=slave,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    read_until(master, b"up")
    resize(master, 40, 120)
    assert b"40 120" in read_until(master, b"40 120")
    assert process.wait(10) == 0
    os.close(master)
    os.close(slave)


def test_run_on_an_existing_sandbox_says_what_it_ignores(env):
    done = msb(env, "run", "-n", "box", "-m", "1G", "alpine", "--", "echo", "hi")
    assert done.stdout == b"hi\n"
    assert done.stderr.decode() == (
        "warn: sandbox 'box' already exists; creation flags ignored (use --replace to recreate)\n"
    )
    done = msb(env, "run", "-d", "-n", "box", "alpine", "--", "echo", "hi")
    assert (done.stdout, done.returncode) == (b"box\n", 0)
    assert b"command after -- is not run in --detach mode" in done.stderr
    assert msb(env, "ls", "--running", "-q").stdout == b"box\n", "it was left running"


def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(fd, text, seconds=10):
    seen, deadline = b"", time.monotonic() + seconds
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"no {text!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def gone(pid, seconds=5):
    """Whether the process ends within that time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)
