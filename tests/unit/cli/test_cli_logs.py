"""``msb logs``: what it shows, how, and when it ends."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.logs.conftest import NOON, Logs, stamp

RED = "\x1b[31mred\x1b[0m\n"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def logs(home):
    logs = Logs(home / "sandboxes" / "box" / "logs")
    yield logs
    logs.close()


@pytest.fixture
def environment(home):
    return {
        **{key: value for key, value in os.environ.items() if key != "NO_COLOR"},
        "MSB_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TERM": "xterm",
    }


def command(*words):
    return [sys.executable, "-m", "microsandbox.cli", "logs", "box", *words]


@pytest.fixture
def msb(environment):
    def run(*words, **more):
        done = subprocess.run(command(*words), env={**environment, **more}, capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    return run


def test_output_is_shown_as_it_was_printed(environment, logs):
    logs.printed("no new")
    logs.printed("line\nerror\n", source="stderr")
    logs.printed("/w==", e="b64")
    logs.printed("hidden\n", source="system")
    done = subprocess.run(command(), env=environment, capture_output=True, timeout=30)
    assert done.stdout == b"no newline\nerror\n\xff"


def test_filters(msb, logs):
    for number in range(10):
        logs.printed(f"{number}\n", at=number)
    assert msb("--since", stamp(NOON + 6)) == "6\n7\n8\n9\n"
    assert msb("--until", stamp(NOON + 2)) == "0\n1\n"
    assert msb("--since", "1s") == ""
    assert msb("--tail", "2") == "8\n9\n"
    assert msb("--grep", "^[13579]$", "--tail", "2") == "7\n9\n"


def test_sources(msb, logs):
    for source in ("stdout", "stderr", "output", "system"):
        logs.printed(f"{source}\n", source=source)
    logs.write("kernel.log", b"Linux\n")
    assert msb() == "stdout\nstderr\noutput\n"
    assert msb("--source", "stderr,output") == "stderr\noutput\n"
    assert msb("--source", "all") == "stdout\nstderr\noutput\nsystem\nLinux\n"


def test_times_and_commands_stand_before_each_entry_and_its_lines_below_each_other(msb, logs):
    logs.printed("one\ntwo\n", at=123, id=7)
    logs.printed("open", at=124, id=7)
    logs.printed("marker\n", at=125, source="system")
    every = ("--source", "all")
    assert msb("--timestamps") == (
        "2026-01-01T12:00:00.123Z\tone\n                        \ttwo\n2026-01-01T12:00:00.124Z\topen\n"
    )
    assert msb("--show-id", *every) == "[id:  7] one\n         two\n[id:  7] open\n[id:sys] marker\n"
    assert msb("--timestamps", "--show-id", "--tail", "1") == "2026-01-01T12:00:00.124Z\t[id:  7] open\n"


def test_json_lines_are_those_of_the_file(msb, logs):
    logs.printed("größer\n")
    logs.printed("/w==", source="output", id=2, e="b64")
    logs.printed("m", source="system")
    found = [json.loads(line) for line in msb("--json", "--source", "all").splitlines()]
    at = {"t": "2026-01-01T12:00:00.000Z"}
    assert found == [
        {**at, "s": "stdout", "d": "größer\n", "id": 1},
        {**at, "s": "output", "d": "/w==", "id": 2, "e": "b64"},
        {**at, "s": "system", "d": "m"},
    ]


def test_colours_are_for_terminals_or_for_those_who_ask(msb, logs):
    logs.printed(RED, id=8)
    assert msb() == "red\n"
    assert msb("--color", "always") == RED
    assert msb("--color", "always", "--color-sessions") == f"\x1b[36m[id:  8] \x1b[0m{RED}"
    assert msb("--color-sessions") == "[id:  8] red\n"


@pytest.mark.parametrize(
    ("words", "more", "shown"),
    [((), {}, RED), (("--no-color",), {}, "red\n"), ((), {"NO_COLOR": "1"}, "red\n")],
)
def test_colours_on_a_terminal(environment, logs, words, more, shown):
    logs.printed(RED)
    master, slave = pty.openpty()
    subprocess.run(command(*words), env={**environment, **more}, stdout=slave, timeout=30, check=True)
    os.close(slave)
    assert os.read(master, 1000).decode() == shown.replace("\n", "\r\n")
    os.close(master)


def test_a_boot_that_failed_comes_first(environment, msb, logs):
    record = {"t": stamp(NOON), "stage": "image", "errno": 2, "message": "no disk"}
    (logs.directory / "boot-error.json").write_text(json.dumps(record))
    logs.printed("earlier\n")
    done = subprocess.run(command(), env=environment, capture_output=True, text=True, timeout=30)
    assert done.stdout == "earlier\n"
    assert done.stderr.splitlines() == [
        'error: failed to start "box"',
        "  → image: no disk",
        "  → rootfs not found — try `msb pull <image>` first",
        "  → run `msb logs --source system box` for full diagnostics",
    ]
    first = json.loads(msb("--json").splitlines()[0])
    assert (first["s"], json.loads(first["d"])) == ("boot-error", record)


@pytest.fixture
def sandbox(environment, home):
    """A process that the catalogue knows as the running sandbox ``box``."""
    program = Path(__file__).with_name("host_agent.py")
    process = subprocess.Popen(
        [sys.executable, program, "box"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def following(environment, logs):
    """``msb logs --follow`` that has shown the first line."""
    logs.printed("first\n")
    processes = []

    def follow(*words):
        process = subprocess.Popen(
            command("--follow", *words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
        assert process.stdout.readline() == b"first\n"
        return process

    yield follow
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_following_ends_with_the_sandbox_after_its_last_words(sandbox, following, logs):
    process = following("--grep", "[aeiou]")
    logs.printed("second\n")
    assert process.stdout.readline() == b"second\n"
    logs.rotate()
    logs.printed("xyz\n")
    logs.printed("last words\n")
    sandbox.kill()
    assert process.communicate(timeout=20) == (b"last words\n", b"")
    assert process.returncode == 0


def test_following_a_sandbox_that_does_not_run_is_reading_it(following):
    assert following().communicate(timeout=20) == (b"", b"")


def test_ctrl_c_ends_following(sandbox, following, logs):
    process = following()
    logs.printed("second\n")
    assert process.stdout.readline() == b"second\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == 130


def test_a_follower_that_is_overtaken_says_so(sandbox, following, logs):
    process = following()
    logs.printed("second\n")
    assert process.stdout.readline() == b"second\n"
    process.send_signal(signal.SIGSTOP)
    offset = (logs.directory / "exec.log").stat().st_size
    for _ in range(5):
        logs.rotate()
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate(timeout=20)
    assert error.decode() == (
        f"error: log follower fell behind: missed rotation at offset {offset}. "
        "restart `msb logs -f` to resume.\n"
    )
    assert process.returncode == 1


def test_a_reader_that_goes_away_ends_it_quietly(sandbox, following, logs):
    process = following()
    process.stdout.close()
    logs.printed("second\n")
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
