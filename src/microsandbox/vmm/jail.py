"""The jail around QEMU: started as if it were hostile already.

Its own user, mount, PID, network, IPC, UTS and cgroup namespaces; a root directory that holds the files
named here, read-only, and nothing else: no /proc, no /dev, no /etc; a user that is not root on the host
and no capabilities even inside; ``no_new_privs``; only the descriptors it was handed; death with its
parent. Where user namespaces are forbidden the same list of files is enforced by Landlock instead,
and a filter denies the system calls it does not know of. That leaves the names and metadata of files to
be seen and, before version 6, processes of the same user to be signalled.

What runs in the child after clone() must neither touch other threads' state nor fail silently: it
reports to its standard error, which the supervisor keeps.

This module and what it imports are on the way of every start, before QEMU runs: hence no dataclasses, no
enumerations, no pathlib here, each of which takes an interpreter milliseconds to import.
"""

# ruff: noqa: PTH103, PTH116, PTH120

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterable, Mapping

from microsandbox.vmm import linux

#: Exit status of a child that could not enter its jail.
JAIL_FAILED = 125
#: Host users of jailed programs when the supervisor is root: this and a sandbox's id. Above every range
#: that systemd's "Users, Groups, UIDs and GIDs" documents, below 2^31.
FIRST_UID, UID_COUNT = 1_900_000_000, 200_000_000
_MAX_OPEN_FILES = 256
_SAVED_STATE = 4 << 20
_NAMESPACES = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
# An existing directory to build the new root on; it is covered in the child's mount namespace only.
_SCAFFOLD = "/tmp"  # noqa: S108
_MOUNT_FLAGS = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC

_FS_EXECUTE, _FS_READ_FILE, _FS_WRITE_FILE = 1, 4, 2
#: All file system rights by Landlock version: 13 in version 1, then REFER, TRUNCATE, IOCTL_DEV.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_RIGHTS, _SCOPES = 0b11, 0b11


#: What Landlock lets through: sockets by path, and changes of files that are not opened. QEMU needs none.
_UNKNOWN_TO_LANDLOCK = (
    "socket", "socketpair", "connect", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown",
    "lchown", "fchownat", "utime", "utimes", "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr",
    "truncate", "io_uring_setup", "ptrace",
)  # fmt: skip


class Jailed:
    """A program and all it gets.

    ``files`` maps paths inside to files of the host, ``writable`` those that it may write to; ``devices`` are
    device nodes, at the same path and writable; ``fds`` stay open under their numbers, beside 0 (nothing), 1
    and 2 (``errors``). Without ``huge_pages`` it gets small ones, whatever it asks for. ``kind`` is a
    JailKind. ``identity`` tells programs of one host apart: it picks the user when the host's is root.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        files: Mapping[str, str],
        fds: tuple[int, ...],
        errors: int,
        kind: str,
        identity: int = 0,
        writable: Mapping[str, str] | None = None,
        devices: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        huge_pages: bool = True,
    ) -> None:
        self.argv, self.files, self.fds, self.errors = argv, files, fds, errors
        self.kind, self.identity = kind, identity
        self.writable, self.devices, self.environment = writable or {}, devices, environment
        self.huge_pages = huge_pages

    @property
    def values(self) -> tuple[object, ...]:
        """What makes an equal one, in a form that marshal knows."""
        files, writable, environment = dict(self.files), dict(self.writable), dict(self.environment or {})
        fixed = (self.argv, files, self.fds, self.errors, self.kind, self.identity)
        return (*fixed, writable, self.devices, environment, self.huge_pages)


class JailedProcess:
    """A child of this process. ``lifeline`` must stay open while it is to live (until it has exec'd)."""

    def __init__(self, pid: int, lifeline: int) -> None:
        self.pid, self.lifeline = pid, lifeline


def start(jailed: Jailed) -> JailedProcess:
    """Start the program; returns at once, and what goes wrong inside ends the child with JAIL_FAILED.

    Only for single-threaded processes (RuntimeError otherwise). Raises OSError when the kernel refuses
    the namespaces.
    """
    if os.stat("/proc/self/task").st_nlink != 3:  # ., .. and the one thread
        raise RuntimeError("a jailed program can only be started by a single-threaded process")
    waiting, lifeline = os.pipe()
    flags = _NAMESPACES if jailed.kind == "namespaces" else 0
    user = _host_user(jailed)
    try:
        pid = linux.clone(flags, linux.SIGCHLD)
    except BaseException:
        os.close(lifeline)
        os.close(waiting)
        raise
    if pid == 0:
        _child(jailed, user, waiting, lifeline)
    os.close(waiting)
    try:
        if jailed.kind == "namespaces":
            _map_user(pid, user)
        os.write(lifeline, b"\0")
    except BaseException:
        os.kill(pid, linux.SIGKILL)
        os.waitpid(pid, 0)
        os.close(lifeline)
        raise
    return JailedProcess(pid, lifeline)


class _HostUser:
    """Who the program is on the host. ``changed``: we are root, and it becomes somebody else."""

    def __init__(self, uid: int, gid: int, *, changed: bool) -> None:
        self.uid, self.gid, self.changed = uid, gid, changed


def _host_user(jailed: Jailed) -> _HostUser:
    if os.geteuid() != 0:
        return _HostUser(os.geteuid(), os.getegid(), changed=False)
    uid = gid = FIRST_UID + jailed.identity % UID_COUNT
    if jailed.devices:
        gid = os.stat(jailed.devices[0]).st_gid
    return _HostUser(uid, gid, changed=True)


def _map_user(pid: int, user: _HostUser) -> None:
    """Make uid and gid 0 inside that user outside, and no other."""
    contents = {"uid_map": f"0 {user.uid} 1", "gid_map": f"0 {user.gid} 1"}
    if not user.changed:  # the kernel's condition for letting an ordinary user write gid_map
        contents = {"setgroups": "deny", **contents}
    for name, content in contents.items():
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, content.encode())
        finally:
            os.close(fd)


# in the child


def _child(jailed: Jailed, user: _HostUser, waiting: int, lifeline: int) -> None:
    """Never returns."""
    try:
        os.close(lifeline)
        os.dup2(jailed.errors, 2)
        os.setsid()  # a terminal's Ctrl-C is for the owner, not for the machine
        linux.leave_session_keyring()
        if os.read(waiting, 1) != b"\0":
            os._exit(JAIL_FAILED)
        if jailed.kind == "namespaces":
            _enter_namespaces(jailed, user)
        else:
            _enter_landlock(jailed, user)
        linux.die_with_parent(linux.SIGKILL)
        os.set_blocking(waiting, False)
        if _at_end(waiting):
            os._exit(JAIL_FAILED)
        _keep_only(jailed)
        if not jailed.huge_pages:
            linux.refuse_huge_pages()
        for number in (linux.SIGINT, linux.SIGHUP, linux.SIGPIPE):
            linux.set_signal(number, linux.SIG_DFL)
        os.execve(jailed.argv[0], jailed.argv, dict(jailed.environment or {}))  # noqa: S606
    except BaseException as error:
        os.write(2, f"jail: {error}\n".encode("utf-8", "backslashreplace"))
    finally:
        os._exit(JAIL_FAILED)


def _at_end(pipe: int) -> bool:
    """Whether the writer (our parent) is gone: it may have died before die_with_parent() was asked for."""
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def _enter_namespaces(jailed: Jailed, user: _HostUser) -> None:
    # Opened as the user we still are: afterwards the way to them may be barred.
    sources = {path: os.open(host, os.O_PATH | os.O_CLOEXEC) for path, host in jailed.files.items()}
    writable = {path: os.open(host, os.O_PATH | os.O_CLOEXEC) for path, host in jailed.writable.items()}
    devices = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in jailed.devices}
    if user.changed:  # an ordinary user keeps the groups it came with: the kernel would not let them go
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount(
        "jail", _SCAFFOLD, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=1m,nr_inodes=1k"
    )
    _make_places([*sources, *writable, *devices])
    for path, fd in sources.items():
        _bind(fd, path)
    _make_read_only(sources)
    for path, fd in writable.items():
        _bind(fd, path)
        _remount(path, linux.MS_NOSUID | linux.MS_NOEXEC | linux.MS_NODEV)
    for path, fd in devices.items():
        _bind(fd, path)
        _remount(path, linux.MS_NOSUID | linux.MS_NOEXEC)
    os.chdir(_SCAFFOLD)
    linux.pivot_root(".", ".")
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")
    _set_limits(jailed)
    linux.drop_capabilities()
    linux.set_no_new_privileges()


def _make_places(paths: Iterable[str]) -> None:
    for directory in dict.fromkeys(os.path.dirname(path) for path in paths):
        os.makedirs(_SCAFFOLD + directory, exist_ok=True)
    for path in paths:
        os.mknod(_SCAFFOLD + path, 0o444 | stat.S_IFREG)


def _bind(fd: int, path: str) -> None:
    """Show the open file at ``path`` of the new root."""
    linux.mount(f"/proc/self/fd/{fd}", _SCAFFOLD + path, None, linux.MS_BIND)


def _make_read_only(paths: Iterable[str]) -> None:
    """The new root and what is shown in it at ``paths``, all there is so far."""
    if not linux.restrict_mounts(_SCAFFOLD):
        for path in ("", *paths):
            _remount(path, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)


def _remount(path: str, flags: int) -> None:
    target = _SCAFFOLD + path
    # Flags of the file system that the file comes from (noexec, perhaps) are locked: they must be kept.
    kept = os.statvfs(target).f_flag & _MOUNT_FLAGS
    linux.mount(target, target, None, linux.MS_REMOUNT | linux.MS_BIND | flags | kept)


def _enter_landlock(jailed: Jailed, user: _HostUser) -> None:
    abi = linux.landlock_abi()
    rights = (1 << _FS_RIGHTS[min(abi, max(_FS_RIGHTS))]) - 1
    ruleset = linux.landlock_ruleset(rights, _NET_RIGHTS if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    allowed = [(host, _FS_READ_FILE | _FS_EXECUTE) for host in jailed.files.values()]
    allowed += [(host, _FS_READ_FILE | _FS_WRITE_FILE) for host in jailed.writable.values()]
    allowed += [(path, _FS_READ_FILE | _FS_WRITE_FILE | (rights & 1 << 15)) for path in jailed.devices]
    for host, access in allowed:
        fd = os.open(host, os.O_PATH | os.O_CLOEXEC)
        linux.landlock_allow(ruleset, fd, access)
        os.close(fd)
    if user.changed:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    linux.set_capabilities_empty()
    _set_limits(jailed)
    linux.set_no_new_privileges()
    linux.landlock_restrict(ruleset)
    linux.deny_system_calls(_UNKNOWN_TO_LANDLOCK)


def _set_limits(jailed: Jailed) -> None:
    # Nothing it can write to may grow beyond what it has: disks are as large as they will ever be. What is
    # smaller is the state of its devices, for a template.
    largest = max([_SAVED_STATE, *(os.fstat(fd).st_size for fd in jailed.fds)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def _keep_only(jailed: Jailed) -> None:
    """Close every descriptor that is not the program's."""
    null, write = os.pipe()
    os.close(write)  # standard input is at its end
    os.dup2(null, 0)
    os.dup2(2, 1)
    kept = sorted({0, 1, 2, *jailed.fds})
    for fd, following in zip(kept, [*kept[1:], 1 << 20], strict=True):
        os.set_inheritable(fd, True)
        os.closerange(fd + 1, following)
