"""``msb`` from a shell, with real machines: what is printed where, what is returned, what is left."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]
MSB = [sys.executable, "-m", "microsandbox.cli"]


def msb(*arguments, typed=""):
    done = subprocess.run([*MSB, *arguments], capture_output=True, text=True, timeout=90, input=typed)
    return done.returncode, done.stdout, done.stderr


def names():
    return msb("ls", "-q")[1].split()


def wait_for_line(process, expected):
    while (line := process.stdout.readline()) != expected:
        assert line, f"msb ended before it printed {expected!r}: {process.stderr.read()}"


def test_run_streams_apart_returns_the_code_and_leaves_nothing(busybox):
    code, out, err = msb("run", "-q", busybox, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (code, out, err) == (7, "out\n", "err\n")
    assert names() == []


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (["no-such-command"], 127, 'error: failed to exec "no-such-command"'),
        (["/etc/passwd"], 126, "permission denied"),
        (["sh", "-c", "kill -9 $$"], 255, ""),
    ],
)
def test_run_maps_failures_to_codes(busybox, command, code, text):
    found, out, err = msb("run", "-q", busybox, "--", *command)
    assert (found, out) == (code, "")
    assert text in err
    assert names() == []


def test_run_forwards_input_and_options(busybox, tmp_path):
    script = 'cat; echo "$A $(id -u) $(pwd) $(hostname) $(nproc)"; greet; mount | grep /mem'
    code, out, err = msb(
        "run", "-q", "-e", "A=b", "-u", "demo", "-w", "/tmp", "-H", "box", "-c", "2", "-m", "300M",
        "--script", "greet=echo hello", "--tmpfs", "/mem:10M:noexec", busybox, "--", "sh", "-c", script,
        typed="typed\n",
    )  # fmt: skip
    lines = out.splitlines()
    assert lines[:3] == ["typed", "b 1000 /tmp box 2", "hello"], err
    assert "noexec" in lines[3]
    assert "size=10240k" in lines[3]
    assert code == 0


def test_run_without_a_command_runs_the_images(session_home, tmp_path):
    from tests.images import busybox_archive

    config = {"Entrypoint": ["echo", "from"], "Cmd": ["the image"]}
    archive = busybox_archive(tmp_path / "i.tar", config=config, reference="test/entry")
    assert msb("load", "-q", "-i", str(archive))[0] == 0
    assert msb("run", "-q", "test/entry") == (0, "from the image\n", "")
    assert msb("run", "-q", "test/entry", "--", "me")[1] == "from me\n"
    assert msb("image", "rm", "-q", "test/entry")[0] == 0


def test_a_timeout_kills_the_command_and_the_sandbox(busybox):
    started = time.monotonic()
    code, _, err = msb("run", "-q", "--timeout", "1s", busybox, "--", "sleep", "100")
    assert code == 1
    assert "timed out after 1s" in err
    assert time.monotonic() - started < 30
    assert names() == []


def test_a_closed_pipe_ends_it(busybox):
    command = " ".join([*MSB, "run", "-q", busybox, "--", "yes"])
    done = subprocess.run(["sh", "-c", f"{command} | head -n 1"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("y\n", "")
    assert names() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_run_cleans_up(busybox, number, code):
    process = subprocess.Popen(
        [*MSB, "run", "-q", busybox, "--", "sh", "-c", "echo up; exec sleep 1000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_line(process, "up\n")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert names() == []


@pytest.mark.parametrize("delay", [0.1, 0.5, 1.2])
def test_interrupting_the_boot_cleans_up(busybox, delay):
    process = subprocess.Popen(
        [*MSB, "run", "-q", busybox, "--", "sleep", "1000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert names() == []


def test_a_named_sandbox_lives_through_create_exec_stop_start_and_rm(busybox):
    assert msb("create", "-q", "-n", "box", "--label", "team=a", busybox) == (0, "", "")
    assert msb("create", "-q", "-n", "box", busybox)[0] == 1
    assert msb("exec", "box", "--", "sh", "-c", "echo kept > /root/f; cat", typed="in") == (
        0,
        "in",
        "",
    )
    [row] = json.loads(msb("ls", "--format", "json")[1])
    assert (row["name"], row["status"], row["image"]) == ("box", "Running", busybox)
    assert "box" in msb("ps")[1]
    assert msb("rm", "-q", "box")[0] == 1, "it is running"
    assert msb("stop", "-q", "--label", "team=a") == (0, "", "")
    assert msb("exec", "-q", "box", "--", "cat", "/root/f")[:2] == (0, "kept\n"), "exec starts it"
    assert json.loads(msb("inspect", "box", "--format", "json")[1])["status"] == "Stopped", (
        "and stops it again"
    )
    assert msb("start", "-q", "box") == (0, "", "")
    assert msb("run", "-q", "-n", "box", busybox, "--", "cat", "/root/f")[:2] == (0, "kept\n")
    assert json.loads(msb("ps", "box", "--format", "json")[1])["status"] == "Running", "run did not start it"
    assert msb("rm", "-q", "-f", "box") == (0, "", "")
    assert names() == []


def test_detached_run_prints_the_name(busybox):
    code, out, _ = msb("run", "-q", "-d", busybox)
    assert code == 0
    assert names() == [out.strip()]
    assert msb("exec", out.strip(), "--", "true")[0] == 0
    assert msb("rm", "-q", "-f", out.strip())[0] == 0


def test_bad_values_are_told_before_anything_is_made(busybox):
    code, _, err = msb("run", "--memory", "lots", busybox)
    assert code == 2
    assert err.startswith('error: --memory: invalid size "lots"')
    code, _, err = msb("run", "-v", "/tmp:/tmp", busybox)
    assert (code, err) == (1, "error: -v/--volume: not supported yet by this release\n")
    assert names() == []


def test_a_terminal_is_raw_while_a_command_has_it_and_restored_afterwards(busybox):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*MSB, "run", "-q", "-t", busybox, "--", "sh"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
    )
    os.close(slave)
    os.write(master, b"tty; echo $((6*7)); exit 5\n")
    seen = b""
    while process.poll() is None or b"42" not in seen:
        try:
            seen += os.read(master, 4096)
        except OSError:
            break
    assert process.wait(timeout=30) == 5
    os.close(master)
    assert b"/dev/pts/" in seen
    assert b"42" in seen
    assert names() == []


def test_doctor_finds_all_that_sandboxes_need(session_home):
    code, out, _ = msb("doctor", "--format", "json")
    checks = {check["name"]: check["status"] for check in json.loads(out)}
    assert code == 0
    assert "fail" not in checks.values()
    assert {"QEMU", "guest kernel", "jail", "accelerator"} <= set(checks)


def test_logs_of_a_sandbox_that_runs_and_of_one_that_has_stopped(busybox, name):
    assert msb("create", "-q", "-n", name, busybox)[0] == 0
    assert msb("exec", "-q", name, "--", "sh", "-c", "echo one; echo two >&2")[0] == 0
    assert sorted(msb("logs", name)[1].splitlines()) == ["one", "two"]
    follower = subprocess.Popen(
        [*MSB, "logs", "-f", "--source", "all", name], stdout=subprocess.PIPE, text=True
    )
    wait_for_line(follower, "--- sandbox started ---\n")
    assert msb("exec", "-q", name, "--", "echo", "three")[0] == 0
    wait_for_line(follower, "three\n")
    assert msb("stop", "-q", name)[0] == 0
    assert "--- sandbox stopped ---\n" in follower.communicate(timeout=20)[0]
    assert follower.returncode == 0
    assert sorted(msb("logs", "--source", "stdout", name)[1].splitlines()) == ["one", "three"]
    assert msb("rm", "-q", name)[0] == 0
