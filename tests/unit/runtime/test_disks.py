"""Locks on disk images: one writer or many readers, for as long as any copy of the descriptor is open."""

import errno
import os
import pickle
import subprocess
from contextlib import ExitStack

import pytest

from microsandbox.errors import DiskError, DiskInUseError, InvalidConfigError
from microsandbox.runtime.disks import open_locked


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.touch()
    return path


@pytest.fixture
def attach(disk):
    with ExitStack() as stack:

        def attach(*, writable):
            fd = open_locked(disk, writable=writable)
            stack.callback(os.close, fd)
            return fd

        yield attach


def test_many_read_and_nobody_writes_meanwhile(attach):
    attach(writable=False)
    attach(writable=False)
    with pytest.raises(DiskInUseError):
        attach(writable=True)


@pytest.mark.parametrize("writable", [False, True])
def test_one_writes_and_nobody_else_has_it(attach, disk, writable):
    attach(writable=True)
    with pytest.raises(DiskInUseError) as told:
        attach(writable=writable)
    assert str(told.value) == f'disk image "{disk}" is already attached with an incompatible disk mode'
    assert isinstance(told.value, OSError)
    assert (told.value.errno, told.value.filename) == (errno.EAGAIN, str(disk))


def test_the_error_of_a_disk_survives_pickling(attach, disk):
    attach(writable=True)
    with pytest.raises(DiskInUseError) as told:
        attach(writable=True)
    copy = pickle.loads(pickle.dumps(told.value))
    assert (type(copy), str(copy), copy.errno, copy.filename) == (
        DiskInUseError, str(told.value), errno.EAGAIN, str(disk)
    )  # fmt: skip


def test_a_copy_of_the_descriptor_in_another_process_keeps_the_lock(disk):
    fd = open_locked(disk, writable=True)
    holder = subprocess.Popen(["sleep", "1000"], pass_fds=(fd,))
    os.close(fd)
    with pytest.raises(DiskInUseError):
        open_locked(disk, writable=True)
    holder.kill()
    holder.wait()
    os.close(open_locked(disk, writable=True))


def test_other_children_do_not_inherit_it(disk):
    fd = open_locked(disk, writable=True)
    child = subprocess.Popen(["sleep", "1000"], close_fds=False)
    os.close(fd)
    try:
        os.close(open_locked(disk, writable=True))
    finally:
        child.kill()
        child.wait()


def test_a_disk_that_is_not_there_is_told(tmp_path):
    with pytest.raises(
        InvalidConfigError, match=r"disk image host path does not exist: .*/none .*os error 2"
    ):
        open_locked(tmp_path / "none", writable=False)


def test_a_disk_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(DiskError) as told:
        open_locked(tmp_path, writable=True)
    assert str(told.value) == f"open disk image lock {tmp_path}: Is a directory (os error 21)"
    assert told.value.errno == errno.EISDIR
