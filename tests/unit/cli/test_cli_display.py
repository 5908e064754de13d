"""What is drawn on a terminal: it is seen while it lasts, gone afterwards, and echo is as it was."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios

import pytest

PULL = """
import time
from microsandbox.cli.pull_display import PullDisplay
from microsandbox.image.progress import PullEvent as E

with PullDisplay("test/image:1", quiet=False, summary=True) as display:
    for event in (
        E("resolving", reference="test/image:1"),
        E("resolved", layer_count=2),
        E("layer_download_progress", layer_index=0, downloaded_bytes=1 << 20, total_bytes=4 << 20),
        E("layer_download_progress", layer_index=1, downloaded_bytes=9, total_bytes=9),
        E("layer_materialize_writing", layer_index=1),
    ):
        display.show(event)
    time.sleep(0.3)  # three frames
    %s
    display.show(E("complete"))
"""

SPIN = """
import asyncio
from microsandbox.cli.interrupts import run_cancellable
from microsandbox.cli.spinner import progress

async def main():
    async with progress("Stopping", "Stopped", "box", quiet=False):
        await asyncio.sleep(%s)
    return 0

raise SystemExit(run_cancellable(main))
"""


def started(code, **variables):
    """The code as a process on a terminal of its own, and both ends of that."""
    master, slave = pty.openpty()
    env = {
        **os.environ,
        "TERM": "xterm",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        **variables,
    }
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=env,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # the first terminal becomes ours
    )  # fmt: skip
    return process, master, slave


def read_until(fd, text, seconds=10):
    seen = b""
    while text not in seen:
        assert select.select([fd], [], [], seconds)[0], f"no {text!r} in {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def echoes(fd):
    return bool(termios.tcgetattr(fd)[3] & termios.ECHO)


def test_a_pull_has_a_bar_for_each_layer_and_ends_with_one_line():
    process, master, slave = started(PULL % "")
    seen = read_until(master, b"Pulled       test/image:1").decode()
    assert process.wait(10) == 0
    for text in ("Resolving", "(2 layers)", "layer  1/2", "1.0 MiB/4.0 MiB", "writing image"):
        assert text in seen
    assert echoes(slave)


def test_a_pull_that_fails_says_so_and_gives_the_terminal_back():
    process, master, slave = started(
        PULL % "assert not __import__('termios').tcgetattr(0)[3] & 8; raise OSError"
    )
    read_until(master, b"Pulling      test/image:1")
    assert process.wait(10) == 1
    assert echoes(slave)


def test_a_spinner_turns_silently_and_is_gone_afterwards():
    process, master, slave = started(SPIN % 0.6)
    read_until(master, b"Stopping     box")
    assert not echoes(slave)
    seen = read_until(master, b"Stopped      box")
    assert seen.index(b"\r\x1b[K") < seen.rindex(b"Stopped")
    assert process.wait(10) == 0
    assert echoes(slave)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_spinner_that_is_interrupted_gives_the_terminal_back(number, code):
    process, master, slave = started(SPIN % 60)
    read_until(master, b"Stopping     box")
    process.send_signal(number)
    assert process.wait(10) == code
    assert echoes(slave)
    os.close(master)
    os.close(slave)
