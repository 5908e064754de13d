"""Files of a real guest: whole, in streams, between host and guest, with the errors of both sides."""

import asyncio
import hashlib
import os
import random

import pytest
import pytest_asyncio

from microsandbox import FilesystemError, IoError, PathNotFoundError, Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(busybox):
    async with await Sandbox.create("files", image=busybox) as sandbox:
        yield sandbox


@pytest.fixture
def fs(sandbox):
    return sandbox.fs


async def test_write_and_read(fs):
    await fs.write("/work/a", b"\x00one\xff")
    assert await fs.read("/work/a") == b"\x00one\xff"
    await fs.write("/work/a", b"")
    assert await fs.read("/work/a") == b""
    await fs.write("/work/t", "grüße".encode())
    assert await fs.read_text("/work/t") == "grüße"


async def test_text_must_be_text(fs):
    await fs.write("/work/b", b"\xff\xfe")
    with pytest.raises(FilesystemError, match="sandbox fs error: invalid utf-8"):
        await fs.read_text("/work/b")
    with pytest.raises(TypeError):
        await fs.write("/work/b", "text")


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (lambda fs: fs.read("/nowhere/x"), "open: No such file or directory (os error 2)"),
        (lambda fs: fs.write("/nowhere/x", b""), "open: No such file or directory (os error 2)"),
        (lambda fs: fs.stat("/nowhere"), "stat: No such file or directory (os error 2)"),
        (lambda fs: fs.list("/nowhere"), "opendir: No such file or directory (os error 2)"),
        (lambda fs: fs.remove("/nowhere"), "remove: No such file or directory (os error 2)"),
        (lambda fs: fs.rename("/nowhere", "/x"), "rename: No such file or directory (os error 2)"),
        (lambda fs: fs.copy("/nowhere", "/x"), "copy: No such file or directory (os error 2)"),
    ],
)
async def test_a_missing_path(fs, operation, text):
    with pytest.raises(PathNotFoundError) as caught:
        await operation(fs)
    assert str(caught.value) == f"sandbox fs error: {text}"


async def test_what_is_no_file_or_no_directory(fs):
    with pytest.raises(FilesystemError, match=r"remove: "):
        await fs.remove("/work")
    with pytest.raises(FilesystemError, match=r"Not a directory \(os error 20\)"):
        await fs.list("/etc/passwd")
    with pytest.raises(FilesystemError, match=r"open: "):
        await fs.write("/work", b"")


async def test_directories(fs):
    await fs.mkdir("/work/d/e/f")
    await fs.mkdir("/work/d/e/f")
    await fs.write("/work/d/one", b"1")
    listed = {entry.path: entry for entry in await fs.list("/work/d")}
    assert set(listed) == {"/work/d/e", "/work/d/one"}
    assert (listed["/work/d/e"].kind, listed["/work/d/one"].kind) == ("directory", "file")
    assert listed["/work/d/one"].size == 1
    await fs.remove_dir("/work/d")
    assert not await fs.exists("/work/d")


async def test_a_large_directory_is_listed_whole(fs, sandbox):
    await sandbox.shell("mkdir /work/many && cd /work/many && for i in $(seq 1500); do : > f$i; done")
    assert len(await fs.list("/work/many")) == 1500


async def test_stat_follows_links_and_list_does_not(fs, sandbox):
    await sandbox.shell(
        "cd /work && echo 12345 > target && chmod 440 target && ln -s target link && ln -s gone broken"
    )
    found = await fs.stat("/work/link")
    assert (found.kind, found.size, found.mode & 0o777, found.readonly) == ("file", 6, 0o440, True)
    assert found.created is None
    assert found.modified > 1.6e12
    kinds = {entry.path: entry.kind for entry in await fs.list("/work")}
    assert (kinds["/work/link"], kinds["/work/broken"]) == ("symlink", "symlink")
    assert await fs.exists("/work/link")
    assert not await fs.exists("/work/broken")


async def test_copy_keeps_the_mode_and_rename_replaces(fs, sandbox):
    await sandbox.shell("cd /work && echo x > c1 && chmod 751 c1")
    await fs.copy("/work/c1", "/work/c2")
    assert (await fs.stat("/work/c2")).mode & 0o777 == 0o751
    await fs.rename("/work/c2", "/work/c1")
    assert not await fs.exists("/work/c2")


@pytest.mark.parametrize("path", ["/dev/zero", "/work/fifo", "/proc/self/status"])
async def test_special_files_hang_nobody(fs, sandbox, path):
    await sandbox.shell("[ -p /work/fifo ] || mkfifo /work/fifo")
    stream = await asyncio.wait_for(fs.read_stream(path), 10) if path != "/work/fifo" else None
    if path == "/dev/zero":
        assert set(await asyncio.wait_for(stream.__anext__(), 10)) == {0}
    elif path == "/work/fifo":
        assert await asyncio.wait_for(fs.read(path), 10) == b""  # nobody writes to it
    else:
        assert b"Name:" in await stream.collect()
    assert (await asyncio.wait_for(sandbox.exec("echo", ["alive"]), 10)).success


async def test_64_mib_in_both_directions_are_identical(fs, sandbox, tmp_path):
    data = random.Random(1).randbytes(64 << 20)
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(data)
    await fs.copy_from_host(str(source), "/work/big")
    digest = (await sandbox.exec("sha256sum", ["/work/big"])).stdout_text.split()[0]
    assert digest == hashlib.sha256(data).hexdigest()
    await fs.copy_to_host("/work/big", str(back))
    assert back.read_bytes() == data
    await fs.remove("/work/big")


async def test_a_stream_is_written_and_read_in_pieces(fs):
    async with await fs.write_stream("/work/stream") as sink:
        for number in range(100):
            await sink.write(b"%05d\n" % number * 1000)
    await sink.close()
    with pytest.raises(RuntimeError, match="write stream closed"):
        await sink.write(b"more")
    stream = await fs.read_stream("/work/stream")
    first = await stream.__anext__()
    assert first + await stream.collect() == b"".join(b"%05d\n" % n * 1000 for n in range(100))


async def test_a_full_guest_disk_is_an_error_of_the_stream(fs, sandbox):
    await sandbox.shell("mkdir -p /work/small && mount -t tmpfs -o size=1m none /work/small")
    sink = await fs.write_stream("/work/small/file")
    with pytest.raises(FilesystemError, match=r"No space left on device \(os error 28\)"):
        async with sink:
            for _ in range(64):
                await sink.write(bytes(256 << 10))
    assert (await sandbox.exec("true")).success


async def test_host_errors_are_the_hosts(fs, tmp_path):
    await fs.write("/work/h", b"content")
    with pytest.raises(IoError, match="io error: .*No such file or directory"):
        await fs.copy_from_host(str(tmp_path / "missing"), "/work/h2")
    with pytest.raises(IoError, match="Is a directory"):
        await fs.copy_from_host(str(tmp_path), "/work/h2")
    with pytest.raises(IoError, match="No such file or directory"):
        await fs.copy_to_host("/work/h", str(tmp_path / "missing" / "h"))
    assert os.listdir(tmp_path) == []


async def test_a_copy_that_fails_half_way_leaves_nothing_on_the_host(fs, tmp_path):
    with pytest.raises(FilesystemError):
        await fs.copy_to_host("/work", str(tmp_path / "dir"))
    assert os.listdir(tmp_path) == []


async def test_many_streams_at_once(fs):
    contents = {f"/work/m{n}": bytes([n]) * (300_000 + n) for n in range(20)}
    await asyncio.gather(*(fs.write(path, data) for path, data in contents.items()))
    assert await asyncio.gather(*(fs.read(path) for path in contents)) == list(contents.values())
