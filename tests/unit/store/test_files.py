"""Files appear whole or not at all; locks hold between processes; copies keep holes."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from microsandbox.store.files import (
    FileLock,
    copy_sparse,
    make_private,
    making_directory,
    partial_path,
    remove_leftovers,
    sparse_digest,
    write_atomically,
    writing,
)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_write_that_fails_leaves_the_old_content_and_no_temporary_file(tmp_path):
    target = tmp_path / "file"
    write_atomically(target, b"old")
    with pytest.raises(RuntimeError), writing(target) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    target = tmp_path / "file"
    contents = [bytes([value]) * 300_000 for value in (1, 2)]
    write_atomically(target, contents[0])
    done = threading.Event()

    def rewrite():
        for number in range(40):
            write_atomically(target, contents[number % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not done.is_set():
        assert target.read_bytes() in contents
    writer.join()


def test_a_writer_killed_in_the_middle_leaves_nothing_behind(tmp_path):
    script = (
        "import sys, pathlib, os, signal\n"
        "from microsandbox.store.files import writing\n"
        "with writing(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'x' * 100000); file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [make_private, lambda path: making_directory(path).__enter__()])
def test_directories_and_their_parents_are_private_whatever_the_umask(tmp_path, make):
    """A home made under umask 002 would be refused the next time."""
    before = os.umask(0)
    try:
        make(tmp_path / "home" / "kernels" / "x")
    finally:
        os.umask(before)
    for directory in (tmp_path / "home", tmp_path / "home" / "kernels"):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_in_the_making_becomes_visible_whole(tmp_path):
    with making_directory(tmp_path / "d") as partial:
        (partial / "a").write_text("1")
        assert not (tmp_path / "d").exists()
    assert names(tmp_path / "d") == ["a"]
    assert names(tmp_path) == ["d"]


def test_who_makes_a_directory_second_keeps_the_first(tmp_path):
    with making_directory(tmp_path / "d") as late:
        (late / "mine").touch()
        with making_directory(tmp_path / "d") as early:
            (early / "theirs").touch()
    assert names(tmp_path / "d") == ["theirs"]
    assert names(tmp_path) == ["d"]


def test_a_lock_keeps_other_processes_out_and_ends_with_its_holder(tmp_path):
    script = (
        "import sys, pathlib\n"
        "from microsandbox.store.files import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1])); lock.acquire()\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    lock = FileLock(path)
    assert not lock.acquire(blocking=False)
    holder.kill()
    holder.communicate()
    assert lock.acquire(blocking=False)
    lock.release()
    assert path.exists(), "a lock file is never deleted"


def test_shared_locks_exclude_only_writers(tmp_path):
    path = tmp_path / "lock"
    with FileLock(path, shared=True):
        assert FileLock(path, shared=True).acquire(blocking=False)
        assert not FileLock(path).acquire(blocking=False)


def test_a_sparse_copy_is_equal_and_takes_no_more_room(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        for offset in (0, 3 << 20, 200 << 20):
            file.seek(offset)
            file.write(os.urandom(5000))
        file.truncate(300 << 20)
    copy_sparse(source, target)
    assert target.stat().st_size == 300 << 20
    assert target.stat().st_blocks <= source.stat().st_blocks + 64
    with source.open("rb") as left, target.open("rb") as right:
        for offset in (0, 3 << 20, 200 << 20, 299 << 20):
            left.seek(offset)
            right.seek(offset)
            assert left.read(1 << 20) == right.read(1 << 20)


def test_a_sparse_copy_can_grow(tmp_path):
    (tmp_path / "a").write_bytes(b"data")
    copy_sparse(tmp_path / "a", tmp_path / "b", size=1 << 30)
    assert (tmp_path / "b").stat().st_size == 1 << 30
    assert (tmp_path / "b").stat().st_blocks < 100


def test_leftovers_of_dead_writers_are_collected_when_they_are_old(tmp_path):
    young, old, other = partial_path(tmp_path / "young"), partial_path(tmp_path / "old"), tmp_path / "kept"
    for path in (young, old, other):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    assert remove_leftovers(tmp_path, older_than=time.time() - 60) == 1
    assert names(tmp_path) == sorted([young.name, "kept"])


def test_a_lock_says_whether_it_is_free_and_takes_nothing(tmp_path):
    lock = FileLock(tmp_path / "lock")
    assert lock.is_free()
    with FileLock(tmp_path / "lock"):
        assert not lock.is_free()
        assert not lock.is_free()
    assert lock.is_free()
    assert lock.acquire(blocking=False)
    lock.release()


def digest(path):
    with path.open("rb") as file:
        return sparse_digest(file.fileno())


def sparse_file(path, size, *pieces):
    with path.open("wb") as file:
        file.truncate(size)
        for position, data in pieces:
            file.seek(position)
            file.write(data)
        os.fsync(file.fileno())
    return path


def test_a_digest_tells_data_size_and_place(tmp_path):
    piece = b"x" * 4096
    files = [
        sparse_file(tmp_path / "one", 1 << 20, (0, piece)),
        sparse_file(tmp_path / "longer", 2 << 20, (0, piece)),
        sparse_file(tmp_path / "moved", 1 << 20, (1 << 18, piece)),
        sparse_file(tmp_path / "changed", 1 << 20, (0, b"X" + piece[1:])),
        sparse_file(tmp_path / "more", 1 << 20, (0, piece), (1 << 18, piece)),
        sparse_file(tmp_path / "holes only", 1 << 20),
        sparse_file(tmp_path / "empty", 0),
    ]
    assert len({digest(path) for path in files}) == len(files)
    assert digest(files[0]) == digest(sparse_file(tmp_path / "same", 1 << 20, (0, piece)))


def test_a_copy_has_the_digest_of_what_it_was_copied_from(tmp_path):
    source = sparse_file(tmp_path / "source", 8 << 20, (0, b"a" * 5000), (4 << 20, b"b" * 100_000))
    copy_sparse(source, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(source)


def test_a_copy_to_another_file_system_is_the_same():
    """Where the kernel cannot share extents, and refuses to copy them itself."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as there, tempfile.TemporaryDirectory() as here:
        assert os.stat(there).st_dev != os.stat(here).st_dev
        source = sparse_file(Path(here, "source"), 8 << 20, (0, b"a" * 8192), (4 << 20, b"b" * 81_920))
        copy_sparse(source, Path(there, "copy"))
        assert digest(Path(there, "copy")) == digest(source)
        assert Path(there, "copy").stat().st_blocks * 512 < 1 << 20


def test_the_digest_of_holes_reads_nothing(tmp_path):
    started = time.monotonic()
    digest(sparse_file(tmp_path / "huge", 1 << 40, (1 << 39, b"here")))
    assert time.monotonic() - started < 1
