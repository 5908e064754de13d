"""A kernel's last words: what they say of PID 1, which may be a program of the image."""

import pytest

from microsandbox.runtime.boot_failure import init_is_done, panic_reason


def console(words):
    return (
        b"agentd: one thing\r\n[    2.1] Kernel panic - not syncing: " + words + b"\r\n[    2.2] CPU: 0\r\n"
    )


@pytest.mark.parametrize(
    ("code", "reason", "done"),
    [
        (b"00000000", "the guest kernel panicked: PID 1 exited with status 0 (one thing)", True),
        (b"00000300", "the guest kernel panicked: PID 1 exited with status 3 (one thing)", False),
        (b"0000000b", "the guest kernel panicked: PID 1 was killed by signal 11 (one thing)", False),
    ],
)
def test_the_end_of_an_init_is_said_as_one(code, reason, done):
    words = console(b"Attempted to kill init! exitcode=0x" + code)
    assert panic_reason(words) == reason
    assert init_is_done(words) is done


def test_other_panics_are_the_kernels_with_the_agents_last_word():
    words = console(b"VFS: Unable to mount root fs")
    assert panic_reason(words) == "the guest kernel panicked: VFS: Unable to mount root fs (one thing)"
    assert not init_is_done(words)
    assert panic_reason(b"quiet") is None
    assert not init_is_done(b"quiet")
