"""The files behind a sandbox's block devices: making the writable layer, locking what is attached."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from microsandbox import tools
from microsandbox.errors import DiskError, DiskInUseError, InvalidConfigError, IoError
from microsandbox.store.files import FileLock, copy_sparse, make_private, partial_path
from microsandbox.store.home import Home

#: A journal of the default size would be the largest part of an empty writable layer.
_JOURNAL_MIB, _JOURNAL_FROM_MIB = 16, 256
# The file is all holes, so its inode tables are zero already: the guest need not write them again.
_PREZEROED = "assume_storage_prezeroed=1,root_owner=0:0"
_OLDER_E2FSPROGS = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"


def make_upper(home: Home, target: Path, size_mib: int) -> None:
    """An empty ext4 file system of that size, sparse, copied from one that was formatted once.

    Raises InvalidConfigError for a size ext4 cannot have, IoError when the disk is full.
    """
    template = home.cache / "upper" / f"ext4-{size_mib}m.img"
    if not template.exists():
        _format(template, size_mib, FileLock(home.cache / "locks" / "upper.lock"))
    try:
        copy_sparse(template, target)
    except OSError as error:
        raise _not_written(target, error) from error


def copy_upper(source: Path, target: Path) -> None:
    """The writable layer of a template, for a sandbox of its own. Raises FileNotFoundError, IoError."""
    try:
        copy_sparse(source, target)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_written(target, error) from error


def _not_written(target: Path, error: OSError) -> IoError:
    path = os.path.realpath(target)  # its directory may be known by a descriptor
    return IoError(f"writable layer {path}: {error.strerror} (os error {error.errno})")


def _format(template: Path, size_mib: int, lock: FileLock) -> None:
    make_private(template.parent)
    with lock:
        if template.exists():
            return
        partial = partial_path(template)
        try:
            with partial.open("xb") as file:
                os.ftruncate(file.fileno(), size_mib << 20)
            _mke2fs(partial, size_mib)
            partial.rename(template)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise InvalidConfigError(f"oci upper_size of {size_mib} MiB is too large here") from error
            raise IoError(f"writable layer template {template}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)


def _mke2fs(path: Path, size_mib: int) -> None:
    arguments: list[str | Path] = ["-q", "-F", "-t", "ext4", "-m", "0"]
    if size_mib >= _JOURNAL_FROM_MIB:
        arguments += ["-J", f"size={_JOURNAL_MIB}"]
    try:
        tools.run(tools.MKE2FS, [*arguments, "-E", _PREZEROED, path])
    except ChildProcessError:
        try:
            tools.run(tools.MKE2FS, [*arguments, "-E", _OLDER_E2FSPROGS, path])
        except ChildProcessError as error:
            raise InvalidConfigError(
                f"oci upper_size of {size_mib} MiB cannot be formatted: {error}"
            ) from error


def open_locked(path: Path, *, writable: bool) -> int:
    """Open a disk file and lock it: one writer or many readers. The lock lasts as long as any copy of the
    descriptor is open, so it survives the owner and ends with the machine.

    Raises DiskInUseError when it is attached elsewhere in another mode, InvalidConfigError when it does
    not exist, DiskError when it cannot be opened or locked.
    """
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidConfigError(
            f"disk image host path does not exist: {path} ({error.strerror} (os error {error.errno}))"
        ) from error
    except OSError as error:
        raise _disk_error(f"open disk image lock {path}", error, path) from error
    operation = fcntl.LOCK_EX if writable else fcntl.LOCK_SH
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        message = f'disk image "{path}" is already attached with an incompatible disk mode'
        raise DiskInUseError(message, error.errno, str(path)) from error
    except OSError as error:
        os.close(fd)
        raise _disk_error(f"lock disk image {path}", error, path) from error
    return fd


def _disk_error(what: str, error: OSError, path: Path) -> DiskError:
    return DiskError(f"{what}: {error.strerror} (os error {error.errno})", error.errno, str(path))
