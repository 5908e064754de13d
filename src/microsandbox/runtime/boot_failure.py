"""Why a guest did not come up: the record of it, and what its machine left behind to tell.

The supervisor keeps the failure as ``boot-error.json`` among the sandbox's logs, and its owner makes a
BootError of it; ``msb logs`` shows it later. The stage of a failure that has none is read from its message.
"""

from __future__ import annotations

import json
import logging
import re
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from microsandbox.errors import BootError
from microsandbox.store.files import write_atomically
from microsandbox.tools import last_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

STAGES = frozenset({"build_vm", "mount", "image", "network", "config", "other"})
#: Bytes of a record that are read: longer ones are not ours.
_MAX_RECORD = 64 << 10
_OS_ERROR = re.compile(r"\(os error (\d{1,9})\)\s*\Z")
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
#: How PID 1 ended, as wait(2) has it.
_INIT_END = re.compile(rb"Attempted to kill init! exitcode=0x([0-9a-f]{8})")
_INIT_FAILED = re.compile(rb"Failed to execute /init \(error -(\d{1,4})\)")
#: Panics of a kernel that does not find or cannot start the agent.
_NO_AGENT = re.compile(rb"No working init found|Unable to mount root fs|Requested init")
_AGENT_LINE = re.compile(rb"agentd: ([^\r\n]*)")
#: What a kernel prints when there is not enough memory for itself, its initramfs or its first process.
_OUT_OF_MEMORY = re.compile(rb"Out of memory|deadlocked on memory|Initramfs unpacking failed: write error")
OUT_OF_MEMORY = "the guest ran out of memory"
SILENT = "the machine was reset before the guest's kernel said anything"
_ENOMEM = 12
log = logging.getLogger(__name__)

_STAGE_RULES = (
    ("build_vm", ("build vm",), ("vm enter", "tokio runtime")),
    ("mount", ("mount ", "runtime mount"), ("virtiofs",)),
    ("image", ("rootfs",), ("trampoline rootfs", "disk format", "image not found")),
    ("network", (), ("network", "bind ", "address already in use", "smoltcp")),
    (
        "config",
        ("database", "serialize startup", "insert run", "mark run failed"),
        ("config parse", "invalid config"),
    ),
)


class _Hint(Struct, frozen=True):
    """Advice for failures of a stage with one of these error numbers, or whose message has these words."""

    advice: str
    stage: str | None = None
    errnos: tuple[int, ...] = ()
    words: str = ""

    def fits(self, stage: str, errno: int | None, message: str) -> bool:
        if self.stage is not None and stage != self.stage:
            return False
        return self.words in message and (not self.errnos or errno in self.errnos)


_DAMAGED_KERNEL = "the prepared guest kernel may be damaged: `msb doctor` examines it"
_HINTS = (
    _Hint("give it more memory: `memory=`, `--memory`", words=OUT_OF_MEMORY),
    _Hint("give it more memory: `memory=`, `--memory`", errnos=(_ENOMEM,)),
    _Hint("stop the sandbox that uses the disk, or attach it read-only in both", words="is already attached"),
    _Hint("the host may be short of memory: its `dmesg` says so", words="QEMU was killed by SIGKILL"),
    _Hint(_DAMAGED_KERNEL, words="cannot start the agent"),
    _Hint(_DAMAGED_KERNEL, words="the kernel module "),
    _Hint("give it more memory: `memory=`, `--memory`", words=SILENT),
    _Hint("the host path for one of the mounts does not exist", "mount", (2,)),
    _Hint("the host path is not readable by msb (check permissions)", "mount", (13,)),
    _Hint(
        "the sandbox's writable layer is damaged: remove the sandbox and create it again",
        "mount",
        (5, 22, 74, 117),
        words="the writable layer",
    ),
    _Hint("rootfs not found — try `msb pull <image>` first", "image", (2,)),
    _Hint(
        "the image in the cache is damaged: `msb image rm --force` it, and pull it again",
        "image",
        (5, 22, 74),
    ),
    _Hint("the port is already bound by another program", "network", (48, 98)),
)


class BootFailure(Exception):
    """Why the guest did not come up. ``stage`` is one of STAGES, ``errno`` the guest's or the host's."""

    def __init__(self, message: str, stage: str | None = None, errno: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage_of(message) if stage is None else stage
        self.errno = errno_of(message) if errno is None else errno

    @classmethod
    def of(cls, error: Exception, stage: str | None = None) -> BootFailure:
        """That of an error on the host."""
        number = error.errno if isinstance(error, OSError) else None
        return cls(str(error), stage, number)

    def as_error(self, name: str) -> BootError:
        """What the sandbox's owner is told."""
        hint = hint_of(self.stage, self.errno, self.message)
        return BootError(name, self.message, stage=self.stage, errno=self.errno, hint=hint)

    def save(self, path: Path) -> None:
        """Leave the record, if that can be written: the end of the run must be settled all the same."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        document = {"t": now, "stage": self.stage, "errno": self.errno, "message": self.message}
        try:
            write_atomically(path, json.dumps(document, indent=2).encode() + b"\n")
        except OSError as error:
            log.warning("the reason could not be left for the owner: %s", error)

    @classmethod
    def load(cls, path: Path) -> BootFailure | None:
        """The saved record, if there is a readable one."""
        try:
            with path.open("rb") as file:
                document: Mapping[str, object] = json.loads(file.read(_MAX_RECORD))
            stage, errno = str(document["stage"]), document.get("errno")
            number = errno if isinstance(errno, int) and not isinstance(errno, bool) else None
            return cls(str(document["message"]), stage if stage in STAGES else "other", number)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


class LinkLost(BootFailure):
    """The agent's port ended; why, the machine's end may tell better."""


def stage_of(message: str) -> str:
    """The stage that a message of the host speaks of."""
    lowered = message.lower()
    for stage, beginnings, words in _STAGE_RULES:
        if lowered.startswith(beginnings) or any(word in lowered for word in words):
            return stage
    return "other"


def errno_of(message: str) -> int | None:
    """The number in the ``(os error N)`` that the message ends with."""
    found = _OS_ERROR.search(message)
    return None if found is None else int(found[1])


def hint_of(stage: str, errno: int | None, message: str) -> str | None:
    """What to do about such a failure, where that is known."""
    return next((hint.advice for hint in _HINTS if hint.fits(stage, errno, message)), None)


def panic_reason(console: bytes) -> str | None:
    """Why the guest kernel panicked, if it did: its word, and the agent's last one."""
    match = _PANIC.search(console)
    if match is None:
        return None
    reason = match[1].decode("utf-8", "replace")
    if (end := _INIT_END.search(match[1])) is not None:
        reason = f"PID 1 {_how(int(end[1], 16))}"
    if lines := _AGENT_LINE.findall(console):
        reason += f" ({lines[-1].decode('utf-8', 'replace')})"
    return f"the guest kernel panicked: {reason}"


def init_is_done(console: bytes) -> bool:
    """Whether PID 1 ended by itself, with status 0. For the kernel that is a panic as any other end of it."""
    match = _PANIC.search(console)
    end = None if match is None else _INIT_END.search(match[1])
    return end is not None and int(end[1], 16) == 0


def _how(status: int) -> str:
    """A wait(2) status in words."""
    number = status & 0x7F
    return f"was killed by signal {number}" if number else f"exited with status {status >> 8 & 0xFF}"


def explain_exit(status: int, console: bytes, errors: str) -> BootFailure:
    """Why a machine ended before its guest was ready, from what it left behind."""
    if (panic := panic_reason(console)) is not None:
        return _explain_panic(panic, console)
    if errors:
        return BootFailure(f"QEMU failed: {errors}", "build_vm")
    if status == 0 and (lines := _AGENT_LINE.findall(console)):  # there was no port yet to say it through
        return BootFailure(lines[-1].decode("utf-8", "replace"), "build_vm")
    if status == 0 and not console:
        return BootFailure(SILENT, "build_vm")
    said = last_lines(console) or "nothing"
    if status < 0:
        return BootFailure(f"{_killed(-status)} before the guest was ready; its console: {said}", "build_vm")
    message = f"the machine ended (status {status}) before the guest was ready; its console: {said}"
    return BootFailure(message, "other")


def _explain_panic(panic: str, console: bytes) -> BootFailure:
    if _OUT_OF_MEMORY.search(console) is not None:
        return BootFailure(f"{OUT_OF_MEMORY}: {panic}", "build_vm", _ENOMEM)
    if _NO_AGENT.search(console) is None:
        return BootFailure(panic, "other")
    number = _INIT_FAILED.search(console)
    message = f"the guest's kernel cannot start the agent: {panic}"
    return BootFailure(message, "build_vm", None if number is None else int(number[1]))


def _killed(number: int) -> str:
    try:
        return f"QEMU was killed by {signal.Signals(number).name}"
    except ValueError:
        return f"QEMU was killed by signal {number}"
