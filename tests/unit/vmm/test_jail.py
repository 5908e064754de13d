"""The jail, seen from inside by a small program in QEMU's place: what it finds is nothing."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from microsandbox.vmm.jail import FIRST_UID

PROGRAM = Path(__file__).with_name("jailed.py")
SOURCE = Path(__file__).parents[3] / "src"
BB = "/bin/busybox"
KINDS = ("namespaces", "old-namespaces", "landlock")
ORDINARY_USER = 65533


def run(kind, script):
    command = [sys.executable, str(PROGRAM), kind, script]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="module")
def public_copy():
    """The package and this program where an ordinary user can read them, and a Python it may start."""
    python = shutil.which("python3", path="/usr/bin")
    if os.geteuid() != 0 or python is None:
        pytest.skip("needs root to become an ordinary user, and the distribution's Python")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        shutil.copytree(
            SOURCE / "microsandbox", directory / "microsandbox", ignore=shutil.ignore_patterns("_guest")
        )
        shutil.copy(PROGRAM, directory)
        yield python, directory


def run_as_user(public_copy, kind, script):
    python, directory = public_copy
    return subprocess.run(
        [python, str(directory / PROGRAM.name), kind, script],
        env={"PYTHONPATH": str(directory)},
        user=ORDINARY_USER,
        group=ORDINARY_USER,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/etc/hostname", "/proc/self/status", "/proc/1/environ", "/sys/class", "/dev/null",
     "/root", "/home", str(Path.home()), "/tmp", "/usr/bin/env", str(SOURCE)],
)  # fmt: skip
def test_no_file_but_its_own_can_be_read(kind, path):
    found = run(kind, f'{BB} cat "{path}" || {BB} ls "{path}/"')
    assert found.returncode != 0, f"the jailed program read {path}: {found.stdout[:200]}"


def test_the_root_directory_holds_nothing_else():
    assert run("namespaces", f"{BB} find /").stdout.split() == ["/", "/bin", "/bin/busybox"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/jail-test", "/tmp/jail-test", "/bin/jail-test", "/dev/shm/jail-test", BB])
def test_nothing_can_be_written(kind, path):
    found = run(kind, f"echo x > {path}")
    assert found.returncode != 0
    assert not Path(path).exists() or path == BB


def test_there_is_no_process_but_its_own():
    found = run("namespaces", f"echo $$ $PPID; {BB} kill -9 -1 || echo alone")
    assert found.stdout.splitlines() == ["1 0", "kill: can't kill pid -1: No such process", "alone"]


def test_other_processes_cannot_be_signalled_under_landlock():
    victim = subprocess.Popen(["sleep", "60"])
    try:
        assert run("landlock", f"{BB} kill -9 {victim.pid}").returncode != 0
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_there_is_no_network():
    found = run("namespaces", f"{BB} ip -o link; {BB} nc -w 1 127.0.0.1 22; {BB} ip route")
    links = [line for line in found.stdout.splitlines() if line[0].isdigit()]
    assert len(links) == 1
    assert "lo: <LOOPBACK> " in links[0], "the loopback interface should be down and alone"
    assert "unreachable" in found.stdout


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's programs change their user")
def test_root_becomes_a_user_of_the_sandboxs_own(kind):
    command = [sys.executable, str(PROGRAM), kind, f"{BB} sleep 60"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCE)}) as launcher:
        try:
            status = wait_for_child(launcher.pid)
            assert status["Uid"].split() == [str(FIRST_UID + 42)] * 4
            assert status["Gid"].split() == [str(FIRST_UID + 42)] * 4
            assert status["Groups"].strip() == ""
            assert {status[f"Cap{name}"].strip("0 \t") for name in ("Inh", "Prm", "Eff", "Amb")} == {""}
            assert status["NoNewPrivs"].strip() == "1"
        finally:
            launcher.kill()
    wait_until_gone(int(status["Pid"]))


def wait_for_child(parent):
    """The status of the jailed program once it has been exec'd."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "busybox":
                lines = Path(f"/proc/{child}/status").read_text().splitlines()
                return dict(line.split(":", 1) for line in lines)
    raise AssertionError("the jailed program did not start")


def wait_until_gone(pid):
    """A jailed program dies with its launcher, whatever killed that."""
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the jailed program outlived its launcher"


@pytest.mark.parametrize("kind", KINDS)
def test_an_ordinary_user_gets_the_same_jail(public_copy, kind):
    found = run_as_user(public_copy, kind, f"{BB} cat /etc/passwd; {BB} id -u; {BB} ls /")
    assert "Permission denied" in found.stderr + found.stdout or "No such file" in found.stdout
    assert "root:" not in found.stdout
    if kind == "namespaces":
        assert found.stdout.splitlines()[-1] == "bin"


@pytest.mark.parametrize("kind", KINDS)
def test_no_descriptor_leaks_into_it(kind):
    script = 'for fd in 3 4 5 6 7 8 9; do (eval ": <&$fd") && echo open $fd; done; exit 0'
    assert "open" not in run(kind, script).stdout


def test_a_program_that_cannot_be_started_says_why(tmp_path):
    code = (
        "import os; from microsandbox.vmm.jail import *\n"
        "from microsandbox.vmm.jail_kind import JailKind\n"
        "p = start(Jailed(('/no/such/program',), {}, (), 2, JailKind.NAMESPACES))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(p.pid, 0)[1]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "125"
    assert "jail: [Errno 2]" in found.stderr


def test_a_process_with_threads_may_not_start_one():
    code = (
        "import threading; from microsandbox.vmm.jail import *\n"
        "from microsandbox.vmm.jail_kind import JailKind\n"
        "e = threading.Event(); t = threading.Thread(target=e.wait); t.start()\n"
        "try: start(Jailed(('/bin/true',), {}, (), 2, JailKind.NAMESPACES))\n"
        "except RuntimeError as error: print(error)\n"
        "finally: e.set()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert "single-threaded" in found.stdout


def test_landlock_lets_no_socket_be_reached_and_no_mode_be_changed(tmp_path):
    """What Landlock does not know of is denied by a filter."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    victim = tmp_path / "victim"
    victim.touch()
    victim.chmod(0o666)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sock"))
        (tmp_path / "sock").chmod(0o777)
        server.listen()
        found = run(
            "landlock", f"{BB} nc -w 1 local:{tmp_path}/sock; {BB} nc -w 1 127.0.0.1 1; {BB} touch {victim}"
        )
    assert found.stdout.count("Operation not permitted") >= 2, found
    assert "Connection refused" not in found.stdout


def test_a_home_on_a_noexec_mount_is_no_obstacle(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,nosuid", "none", tmp_path], check=True)
    try:
        (tmp_path / "kernel").write_text("content")
        code = (
            "import os; from microsandbox.vmm.jail import *\n"
            "from microsandbox.vmm.jail_kind import JailKind\n"
            f"files = {{'{BB}': '{BB}', '/guest/kernel': '{tmp_path}/kernel'}}\n"
            f"p = start(Jailed(('{BB}', 'cat', '/guest/kernel'), files, (), 1, JailKind.NAMESPACES))\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(p.pid, 0)[1]))"
        )
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert found.stdout == "content0\n", found
    finally:
        subprocess.run(["umount", tmp_path], check=True)
