"""System calls that Python 3.11 lacks, by ctypes: namespaces, mounts, capabilities, Landlock.

Numbers and structures are those of the kernel's headers (include/uapi/linux: sched.h, mount.h,
capability.h, prctl.h, landlock.h, openat2.h). Every function raises OSError with the call's name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18
)  # fmt: skip
MNT_DETACH = 2
#: Here because the module ``signal`` takes milliseconds to import. The same on all architectures of ours.
SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGCHLD = 1, 2, 9, 13, 17
SIG_DFL, SIG_IGN = 0, 1

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 1, 24, 28, 38
#: NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, each locked: uid 0 gives no capabilities.
_SECUREBITS = 0b11101111
_CAPABILITY_VERSION_3, _LAST_CAPABILITY = 0x20080522, 63
_EINVAL = 22

# The interpreter's lock stays held: a child of clone() must not depend on other threads to get it.
_libc = ctypes.PyDLL(None, use_errno=True)

if os.uname().machine == "x86_64":
    _SYS_CLONE, _SYS_PIVOT_ROOT, _SYS_CAPSET, _SYS_KEYCTL = 56, 155, 126, 250
else:  # the generic table: arm64, riscv64
    _SYS_CLONE, _SYS_PIVOT_ROOT, _SYS_CAPSET, _SYS_KEYCTL = 220, 41, 91, 219
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PR_SET_THP_DISABLE = 41
_PR_SET_SECCOMP, _KILL, _ALLOW, _DENY_EPERM = 22, 0x80000000, 0x7FFF0000, 0x00050001
_X32_BIT = 0x40000000
if os.uname().machine == "x86_64":
    _AUDIT_ARCH = 0xC000003E
    _NUMBERS = {
        "socket": 41, "connect": 42, "socketpair": 53, "truncate": 76, "chmod": 90, "fchmod": 91, "chown": 92,
        "fchown": 93, "lchown": 94, "ptrace": 101, "utime": 132, "setxattr": 188, "lsetxattr": 189,
        "fsetxattr": 190, "utimes": 235, "fchownat": 260, "futimesat": 261, "fchmodat": 268, "utimensat": 280,
        "io_uring_setup": 425, "fchmodat2": 452,
    }  # fmt: skip
else:
    _AUDIT_ARCH = 0xC00000B7
    _NUMBERS = {
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "truncate": 45, "fchmod": 52, "fchmodat": 53,
        "fchownat": 54, "fchown": 55, "utimensat": 88, "ptrace": 117, "socket": 198, "socketpair": 199,
        "connect": 203, "io_uring_setup": 425, "fchmodat2": 452,
    }  # fmt: skip
_CLOCK_REALTIME, _TIMER_ABSTIME, _TIMER_CANCEL_ON_SET, _FAR_FUTURE = 0, 1, 2, 1 << 33
_SYS_MOUNT_SETATTR = 442
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _AT_RECURSIVE, _AT_FDCWD = 1, 2, 4, 0x8000, -100
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446


def _check(result: int, call: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
    return result


def _syscall(number: int, call: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *converted), call)


def clone(flags: int, exit_signal: int) -> int:
    """As os.fork(), with new namespaces. Only for single-threaded processes whose child soon execs."""
    return _syscall(_SYS_CLONE, "clone", flags | exit_signal, 0, 0, 0, 0)


def set_signal(number: int, disposition: int) -> None:
    """Ignore a signal (SIG_IGN), or have it do what it does by default (SIG_DFL)."""
    _libc.signal(number, ctypes.c_void_p(disposition))


def clock_changes() -> int:
    """A descriptor that becomes readable when CLOCK_REALTIME is set, also by the end of a suspend.

    Each read then fails with ECANCELED, once for all changes before it. It does not block.
    """
    fd = _check(_libc.timerfd_create(_CLOCK_REALTIME, os.O_CLOEXEC | os.O_NONBLOCK), "timerfd_create")
    never = (ctypes.c_long * 4)(0, 0, _FAR_FUTURE, 0)
    flags = _TIMER_ABSTIME | _TIMER_CANCEL_ON_SET
    try:
        _check(_libc.timerfd_settime(fd, flags, never, None), "timerfd_settime")
    except OSError:
        os.close(fd)
        raise
    return fd


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )
    _check(result, f"mount {target}")


def restrict_mounts(top: str) -> bool:
    """Make the mount there, and all below, read-only and without set-user-ID programs and devices.

    What they are besides, they stay. False before Linux 5.12, which does not have mount_setattr(2).
    """
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    try:
        _syscall(
            _SYS_MOUNT_SETATTR,
            f"mount_setattr {top}",
            _AT_FDCWD,
            os.fsencode(top),
            _AT_RECURSIVE,
            attributes,
            len(attributes),
        )
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return False
        raise
    return True


def umount(target: str, flags: int) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    _syscall(_SYS_PIVOT_ROOT, "pivot_root", os.fsencode(new), os.fsencode(old))


def die_with_parent(signal: int) -> None:
    """Be sent ``signal`` when the parent ends. Must follow every change of user."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def refuse_huge_pages() -> None:
    """Give this process and what it executes no transparent huge pages."""
    _check(_libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0), "prctl(PR_SET_THP_DISABLE)")


def leave_session_keyring() -> None:
    """Give up the session's keys (Kerberos tickets, for one), which namespaces do not hide."""
    try:
        _syscall(_SYS_KEYCTL, "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EDQUOT):
            raise


def set_no_new_privileges() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def drop_capabilities() -> None:
    """Give up all capabilities, for good: effective, permitted, inheritable, ambient, bounding."""
    _check(_libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0), "prctl(PR_SET_SECUREBITS)")
    for capability in range(_LAST_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == _EINVAL:  # past the last one this kernel knows
                break
            _check(-1, "prctl(PR_CAPBSET_DROP)")
    set_capabilities_empty()


def set_capabilities_empty() -> None:
    """Empty the effective, permitted and inheritable sets; always allowed."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _syscall(_SYS_CAPSET, "capset", header, bytes(24))


def deny_system_calls(names: Iterable[str]) -> None:
    """Have these system calls fail with EPERM from now on (seccomp(2), a classic BPF program).

    Those that this architecture does not have are skipped. Needs no_new_privs.
    """
    numbers = [_NUMBERS[name] for name in names if name in _NUMBERS]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    program.append((at_least, len(numbers) + 1, 0, _X32_BIT))  # the other set of numbers on x86-64
    for index, number in enumerate(numbers):
        program.append((equal, len(numbers) - index, 0, number))
    program += [(give, 0, 0, _ALLOW), (give, 0, 0, _DENY_EPERM)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter = struct.pack("@HP", len(program), ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, filter, 0, 0), "prctl(PR_SET_SECCOMP)")


def landlock_abi() -> int:
    """The Landlock version of the running kernel; 0 when it has none."""
    try:
        return _syscall(_SYS_LANDLOCK_CREATE, "landlock", 0, 0, 1)
    except OSError:
        return 0


def landlock_ruleset(filesystem: int, network: int, scope: int) -> int:
    """A descriptor of a new ruleset that handles these access rights."""
    attributes = struct.pack("=QQQ", filesystem, network, scope)
    size = 24 if scope else 16 if network else 8
    return _syscall(_SYS_LANDLOCK_CREATE, "landlock_create_ruleset", attributes, size, 0)


def landlock_allow(ruleset: int, fd: int, access: int) -> None:
    """Allow ``access`` below the file or directory that ``fd`` has open."""
    rule = struct.pack("=Qi", access, fd)
    _syscall(_SYS_LANDLOCK_ADD, "landlock_add_rule", ruleset, 1, rule, 0)


def landlock_restrict(ruleset: int) -> None:
    """Put this thread and its children under the ruleset; needs no_new_privs."""
    _syscall(_SYS_LANDLOCK_RESTRICT, "landlock_restrict_self", ruleset, 0)
