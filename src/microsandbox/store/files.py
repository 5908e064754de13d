"""Files that matter: written whole or not at all, locked between processes, copied without their holes.

A reader never sees a half-written file: content goes to a temporary name in the same directory and is
renamed. A lock is a flock(2) on a file that is never deleted, because deleting it would let two
processes hold "the" lock on different inodes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from microsandbox.errors import IoError, MicrosandboxError

#: Names of unfinished files and directories; ``remove_leftovers`` knows them by it.
PARTIAL_PREFIX = ".partial-"


def make_private(directory: Path) -> Path:
    """Make the directory and its missing parents, readable by the owner only."""
    if not directory.is_dir():
        if not directory.parent.exists():  # mkdir would make parents with the default mode
            make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def partial_path(target: Path) -> Path:
    """An unused temporary name beside ``target``."""
    return target.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-{os.urandom(4).hex()}-{target.name}"[:255])


@contextmanager
def writing(target: Path, *, mode: int = 0o600, durable: bool = False) -> Iterator[IO[bytes]]:
    """Write a file that appears as ``target`` when the block ends without an error, and not at all otherwise.

    It has no name until it is complete (O_TMPFILE), so even SIGKILL leaves nothing; file systems without
    that get a temporary name. ``durable`` flushes it to the disk before the rename: for files that would
    lie if lost.
    """
    temporary = partial_path(target)
    try:
        fd = os.open(target.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
        named = False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        named = True
    try:
        with open(fd, "w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(fd)
            if not named:
                # src_dir_fd only makes Python call linkat(2), which can follow the link to the open file.
                os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=fd, follow_symlinks=True)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(target: Path, content: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Replace ``target`` by ``content``, whole or not at all."""
    with writing(target, mode=mode, durable=durable) as file:
        file.write(content)


@contextmanager
def making_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that becomes ``target`` when the block ends without an error.

    If ``target`` has appeared meanwhile (another process was faster), the work is dropped and that stays.
    """
    temporary = partial_path(target)
    make_private(target.parent)
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        remove_tree(temporary)


class FileLock:
    """An exclusive (or shared) lock between processes and threads; a context manager.

    The kernel drops it when the holder dies. The lock file stays.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self._operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd: int | None = None

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take the lock; False when it is held elsewhere and ``blocking`` is false."""
        make_private(self.path.parent)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, self._operation | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def is_free(self) -> bool:
        """Whether nobody holds it just now."""
        if not self.acquire(blocking=False):
            return False
        self.release()
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def copy_sparse(source: Path, target: Path, *, size: int | None = None) -> None:
    """Copy a sparse file extent by extent (shared extents where the file system can), atomically.

    ``size`` grows the copy to that many bytes.
    """
    with source.open("rb") as read, writing(target) as write:
        length = os.fstat(read.fileno()).st_size
        os.ftruncate(write.fileno(), max(size or 0, length))
        for start, end in _extents(read.fileno(), length):
            while start < end:
                copied = _copy_piece(read.fileno(), write.fileno(), start, end)
                if not copied:
                    raise OSError(errno.EIO, "file shrank while it was copied", str(source))
                start += copied


def _copy_piece(read: int, write: int, start: int, end: int) -> int:
    """Some of what lies between two positions; the number of bytes."""
    try:
        return os.copy_file_range(read, write, end - start, start, start)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
            raise
    os.lseek(write, start, os.SEEK_SET)  # another kind of file system: nothing to share, but to copy
    return os.sendfile(write, read, start, end - start)


def sparse_digest(fd: int) -> str:
    """SHA-256 of a file's data and where it lies; holes cost nothing."""
    digest = hashlib.sha256()
    length = os.fstat(fd).st_size
    digest.update(f"{length}".encode())
    for start, end in _extents(fd, length):
        digest.update(f" {start}-{end}:".encode())
        while start < end:
            piece = os.pread(fd, min(end - start, 1 << 20), start)
            if not piece:
                break
            digest.update(piece)
            start += len(piece)
    return digest.hexdigest()


def _extents(fd: int, length: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < length:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


@contextmanager
def host_errors() -> Iterator[None]:
    """Have the operating system's refusals in the block raised as IoError, which callers know."""
    try:
        yield
    except (TimeoutError, MicrosandboxError):  # OSErrors too, but of whoever waits, or told already
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise IoError(f"{place}{error.strerror or error} (os error {error.errno})") from error


def remove_leftovers(directory: Path, *, older_than: float) -> int:
    """Delete unfinished files of writers that died, last changed before ``older_than`` (Unix seconds)."""
    removed = 0
    if not directory.is_dir():
        return 0
    for entry in os.scandir(directory):
        with suppress(FileNotFoundError):
            if (
                entry.name.startswith(PARTIAL_PREFIX)
                and entry.stat(follow_symlinks=False).st_mtime < older_than
            ):
                remove_tree(Path(entry.path))
                removed += 1
    return removed


def remove_tree(path: Path) -> None:
    """Delete a file or a directory with all below it; what is not there is fine."""
    import shutil

    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
        if os.path.lexists(path):  # somebody else is deleting it too, or had a file in it to finish
            remove_tree(path)
