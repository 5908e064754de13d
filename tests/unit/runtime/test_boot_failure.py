"""The record of a failed boot: its form, the stage that its message tells, the advice, and machines' ends."""

import json
import re

import pytest

from microsandbox.errors import VmmError
from microsandbox.runtime.boot_failure import BootFailure, explain_exit, hint_of


@pytest.mark.parametrize(
    ("message", "stage"),
    [
        ("build VM: no kernel", "build_vm"),
        ("oh: VM enter: refused", "build_vm"),
        ("tokio runtime: no threads", "build_vm"),
        ("mount fs1: network is gone", "mount"),
        ("runtime mount: no", "mount"),
        ("a virtiofs queue is stuck", "mount"),
        ("rootfs: bad", "image"),
        ("the image not found", "image"),
        ("disk format: qcow9", "image"),
        ("bind /run/x.sock: Address already in use (os error 98)", "network"),
        ("smoltcp: no route", "network"),
        ("database error: locked", "config"),
        ("insert run: no", "config"),
        ("invalid config: no", "config"),
        ("--mount x: no", "other"),
        ("", "other"),
    ],
)
def test_the_stage_of_a_message(message, stage):
    assert BootFailure(message).stage == stage
    assert BootFailure(message, "image").stage == "image", "who knows the stage is believed"


@pytest.mark.parametrize(
    ("message", "errno"),
    [("x (os error 13)", 13), ("x (os error 13)\n", 13), ("x (os error 13) y", None), ("x", None)],
)
def test_the_error_number_at_the_end_of_a_message(message, errno):
    assert BootFailure(message).errno == errno


def test_an_error_of_the_host_keeps_its_number():
    failure = BootFailure.of(PermissionError(13, "Permission denied", "/x"), "mount")
    assert (failure.stage, failure.errno) == ("mount", 13)
    assert BootFailure.of(VmmError("no")).errno is None


def test_a_record_is_saved_whole_and_read_again(tmp_path):
    path = tmp_path / "boot-error.json"
    BootFailure("bind /x: no (os error 98)").save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["boot-error.json"]
    document = json.loads(path.read_text())
    assert list(document) == ["t", "stage", "errno", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document.pop("t"))
    assert document == {"stage": "network", "errno": 98, "message": "bind /x: no (os error 98)"}
    error = BootFailure.load(path).as_error("box")
    assert str(error) == 'failed to start "box": bind /x: no (os error 98)'
    assert (error.stage, error.errno) == ("network", 98)
    assert error.hint == "the port is already bound by another program"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"message": "x"}', b"\xff", b"[" * 100_000])
def test_what_is_no_record_is_none(tmp_path, content):
    path = tmp_path / "boot-error.json"
    path.write_bytes(content)
    assert BootFailure.load(path) is None
    assert BootFailure.load(tmp_path / "none") is None


def test_strange_values_of_a_record_are_not_believed(tmp_path):
    path = tmp_path / "boot-error.json"
    path.write_text(json.dumps({"stage": "strange", "errno": "x", "message": "m"}))
    failure = BootFailure.load(path)
    assert (failure.stage, failure.errno, failure.message) == ("other", None, "m")


@pytest.mark.parametrize(
    ("stage", "errno", "message", "advice"),
    [
        ("mount", 2, "m", "the host path for one of the mounts does not exist"),
        ("mount", 13, "m", "the host path is not readable by msb (check permissions)"),
        ("image", 2, "m", "rootfs not found — try `msb pull <image>` first"),
        ("network", 48, "m", "the port is already bound by another program"),
        (
            "mount",
            117,
            "the writable layer (/dev/vdb, ext4) cannot be mounted",
            "the sandbox's writable layer",
        ),
        ("image", 22, "m", "the image in the cache is damaged"),
        ("other", None, "the guest ran out of memory: x", "give it more memory"),
        ("mount", 12, "m", "give it more memory"),
        ("other", 2, "m", None),
        ("mount", None, "m", None),
    ],
)
def test_advice(stage, errno, message, advice):
    found = hint_of(stage, errno, message)
    assert found is None if advice is None else found.startswith(advice)


PANIC = b"x\r\nKernel panic - not syncing: Fatal exception\r\nCPU: 0\r\n"
NO_INIT = b"Failed to execute /init (error -8)\r\nKernel panic - not syncing: No working init found.\r\n"


@pytest.mark.parametrize(
    ("status", "console", "errors", "message", "stage"),
    [
        (0, PANIC, "", "the guest kernel panicked: Fatal exception", "other"),
        (
            0,
            b"agentd: first\nagentd: cannot\n" + PANIC,
            "",
            "the guest kernel panicked: Fatal exception (cannot)",
            "other",
        ),
        (
            0,
            b"Out of memory: Killed process 1\n" + PANIC,
            "",
            "the guest ran out of memory: the guest kernel panicked: Fatal exception",
            "build_vm",
        ),
        (
            0,
            NO_INIT,
            "",
            "the guest's kernel cannot start the agent: the guest kernel panicked: No working init found.",
            "build_vm",
        ),
        (0, b"agentd: the kernel module x cannot be loaded: no (os error 8)\n[ 1.4] reboot: Power down", "",
         "the kernel module x cannot be loaded: no (os error 8)", "build_vm"),
        (0, b"", "", "the machine was reset before the guest's kernel said anything", "build_vm"),
        (1, b"", "qemu: no", "QEMU failed: qemu: no", "build_vm"),
        (
            -9,
            b"Linux\r\n",
            "",
            "QEMU was killed by SIGKILL before the guest was ready; its console: Linux",
            "build_vm",
        ),
        (-99, b"", "", "QEMU was killed by signal 99 before the guest was ready; its console: nothing",
         "build_vm"),
        (3, b"", "", "the machine ended (status 3) before the guest was ready; its console: nothing",
         "other"),
    ],
)  # fmt: skip
def test_a_machine_that_ended_too_soon(status, console, errors, message, stage):
    failure = explain_exit(status, console, errors)
    assert (failure.message, failure.stage) == (message, stage)


def test_the_number_of_why_the_agent_is_not_started():
    assert explain_exit(0, NO_INIT, "").errno == 8
