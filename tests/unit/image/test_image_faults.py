"""Loads that are cancelled, killed, doubled, or run out of disk: nothing half made is ever seen."""

import asyncio
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import pytest

from microsandbox.errors import IoError, MicrosandboxError
from tests.small_disk import small_disk
from tests.unit.image.image_building import (
    Built,
    content,
    docker_files,
    entry,
    files_of,
    layout_files,
    new_store,
    rows_of,
    tar,
    tar_files,
)

RANDOM = random.Random(5)
BIG = Built(
    [tar(*(entry(f"f{number}", RANDOM.randbytes(40_000)) for number in range(400)))] * 1
    + [tar(entry("top", RANDOM.randbytes(3_000_000)))],
    name="big:1",
)
EMPTY = {"manifest": 0, "image_ref": 0, "config": 0, "layer": 0, "manifest_layer": 0}

LOAD = """
import asyncio, sys
from pathlib import Path
from microsandbox.store.config import Config, DatabaseConfig
from microsandbox.store.database import Database
from microsandbox.store.home import Home
from microsandbox.image.store import ImageStore

home = Home(Path(sys.argv[1]), Config())
store = ImageStore(home, Database(home.database, DatabaseConfig(busy_timeout_secs=30)))
print("ready", flush=True)
sys.stdin.readline()
def show(event):
    print(event.event_type, flush=True)
print(asyncio.run(store.load(Path(sys.argv[2]), progress=show)), flush=True)
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "archive"
    path.write_bytes(tar_files(layout_files(BIG)))
    return path


def loader(home, archive, **options):
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, str(home), str(archive)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def children():
    """Processes that this one started and that still run."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += (task / "children").read_text().split()
    return set(found)


def open_files():
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


@pytest.mark.parametrize(
    "moment",
    [
        "resolved",
        "layer_materialize_progress",
        "stitch_merging_trees",
        "stitch_writing_fsmeta",
        "stitch_writing_vmdk",
    ],
)
async def test_a_cancelled_load_leaves_nothing(moment, home, archive):
    store = new_store(home)
    before = children(), threading.active_count()
    reached = asyncio.Event()

    def progress(event):
        if event.event_type == moment:
            reached.set()

    task = asyncio.ensure_future(store.load(archive, progress=progress))
    await asyncio.wait_for(reached.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_of(home) == [] and rows_of(home) == EMPTY
    assert children() == before[0]
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("image", "sqfstar"))
    ]
    assert not [name for name in open_files() if str(home / "cache") in name]
    assert await store.load(archive) == ["big:1"]


@pytest.mark.parametrize(
    "moment", ["layer_materialize_started", "stitch_writing_fsmeta", "stitch_writing_vmdk"]
)
def test_a_killed_load_leaves_only_what_prune_collects(moment, home, archive):
    process = loader(home, archive)
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.strip() == moment:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = files_of(home)
    assert all(".partial-" in name for name in left) and rows_of(home) == EMPTY
    store = new_store(home)
    assert asyncio.run(store.load(archive)) == ["big:1"]
    for path in (home / "cache").rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)
    asyncio.run(store.prune())
    assert files_of(home) == [] and rows_of(home) == EMPTY


def test_processes_that_load_the_same_at_once_make_one_image(home, archive):
    processes = [loader(home, archive) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "['big:1']" in out, err
    assert rows_of(home) == {"manifest": 1, "image_ref": 1, "config": 1, "layer": 2, "manifest_layer": 2}
    assert len(files_of(home)) == 5
    stored = new_store(home).by_digest(BIG.digest)
    assert len(content(stored.rootfs, "top")) == 3_000_000


def test_prune_against_loads_leaves_whole_images_or_none(home, archive, tmp_path):
    """Every image that is there at the end can be read; none has lost its file."""
    other = tmp_path / "other"
    other.write_bytes(tar_files(docker_files(Built([BIG.layers[0]], name="other:1"))))
    processes = [loader(home, one) for one in (archive, other, archive)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    store = new_store(home)
    while any(process.poll() is None for process in processes):
        asyncio.run(store.prune())
    for process in processes:
        assert process.returncode == 0, process.stderr.read()
        process.communicate()
    for record in store.list():
        assert content(store.by_digest(record.manifest_digest).rootfs, "f7")


@pytest.mark.fault
@pytest.mark.parametrize("size", ["6m", "30m", "40m", "45m"])
async def test_a_full_disk_is_one_clear_error(size, home, archive):
    """Where it strikes depends on the size: the layers' copies, their spools, the block image."""
    with small_disk(home / "cache", size):
        store = new_store(home)
        with pytest.raises(IoError, match="No space left on device") as caught:
            await store.load(archive)
        assert str(home / "cache") in str(caught.value) and "\n" not in str(caught.value)
        assert files_of(home) == [] and rows_of(home) == EMPTY


@pytest.mark.fault
def test_a_file_size_limit_is_one_clear_error(home, archive):
    process = loader(
        home, archive, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (18 << 20,) * 2)
    )
    _, err = process.communicate("\n", timeout=60)
    assert process.returncode == 1
    assert ("io error: " in err.splitlines()[-1] and "File too large" in err) or "SIGXFSZ" in err
    assert files_of(home) == [] and rows_of(home) == EMPTY


async def test_an_archive_that_shrinks_while_it_is_read_is_an_error(home, archive):
    store = new_store(home)

    def progress(event):
        if event.event_type == "resolved":
            os.truncate(archive, 5_000_000)

    with pytest.raises(MicrosandboxError):
        await store.load(archive, progress=progress)
    assert files_of(home) == [] and rows_of(home) == EMPTY


def test_an_ordinary_user_gets_the_same_image(home, archive, tmp_path):
    """Owners, devices and the root directory do not depend on who packs."""
    if os.geteuid():
        pytest.skip("is one already")
    mixed = Built(
        [
            tar(
                entry("dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
                entry("su", b"x", mode=0o4755, xattrs={"trusted.t": b"1"}),
                entry("mine", b"", uid=65534, gid=65534),
                entry("yours", b"", uid=1000, gid=1000),
            )
        ],
        name="mixed:1",
    )
    archive.write_bytes(tar_files(layout_files(mixed)))
    asyncio.run(new_store(home).load(archive))  # and everything is imported that the child may not read
    with tempfile.TemporaryDirectory(prefix="msb-user-") as directory:
        os.chmod(directory, 0o777)
        copy = Path(directory, "archive")
        copy.write_bytes(archive.read_bytes())
        copy.chmod(0o644)
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                asyncio.run(new_store(Path(directory, "home")).load(copy))
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        theirs = new_store(Path(directory, "home")).by_digest(mixed.digest).rootfs
        assert theirs.stat().st_uid == 65534
        assert theirs.read_bytes() == new_store(home).by_digest(mixed.digest).rootfs.read_bytes()
