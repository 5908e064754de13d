"""Entries one by one as they are written, through rotations, to whatever end."""

import asyncio
import os
import shutil
import time

import pytest

from microsandbox.errors import LogCursorError, LogRotatedError
from microsandbox.logs import watch
from microsandbox.logs.cursor import load_cursor
from microsandbox.logs.follow import LogFollower
from microsandbox.logs.sources import select
from tests.unit.logs.conftest import NOON

OUTPUT = select(None)


@pytest.fixture
async def follow(logs):
    followers = []

    def follow(start=None, *, sources=OUTPUT, follow=True, **filters):
        position = None if start is None else load_cursor(start, 1)
        followers.append(LogFollower(logs.directory, sources, position, follow=follow, **filters))
        return followers[-1]

    yield follow
    for follower in followers:
        follower.close()


async def take(follower, count):
    async with asyncio.timeout(5):
        return [(await follower.next()).text() for _ in range(count)]


async def rest(follower):
    found = []
    async with asyncio.timeout(5):
        while (entry := await follower.next()) is not None:
            found.append(entry.text())
    return found


async def waiting(follower):
    """A task that waits for the next entry, and has found nothing yet."""
    task = asyncio.ensure_future(follower.next())
    await asyncio.sleep(0.02)
    assert not task.done()
    return task


async def test_without_following_it_ends_where_the_files_ended(logs, follow):
    logs.printed("a")
    follower = follow(follow=False)
    logs.printed("b")
    logs.rotate()
    logs.printed("c")
    assert await rest(follower) == ["a"]
    assert await follower.next() is None


async def test_a_line_arrives_when_it_is_written(logs, follow):
    logs.printed("a")
    follower = follow()
    assert await take(follower, 1) == ["a"]
    task = await waiting(follower)
    started = time.monotonic()
    logs.printed("b")
    assert (await asyncio.wait_for(task, 5)).text() == "b"
    assert time.monotonic() - started < 1, "by notification, not by looking every other second"


async def test_without_notifications_it_looks_every_now_and_then(logs, follow, monkeypatch):
    monkeypatch.setattr(watch, "_watch", lambda _: None)
    monkeypatch.setattr(watch, "_POLL", 0.05)
    follower = follow()
    task = await waiting(follower)
    logs.printed("a")
    assert (await asyncio.wait_for(task, 5)).text() == "a"


async def test_half_a_line_is_held_until_it_is_whole(logs, follow):
    follower = follow()
    task = await waiting(follower)
    line = b'{"t":"2026-01-01T12:00:00.000Z","s":"stdout","d":"whole","id":1}\n'
    logs.write("exec.log", line[:30])
    await asyncio.sleep(0.02)
    assert not task.done()
    logs.write("exec.log", line[30:])
    assert (await asyncio.wait_for(task, 5)).text() == "whole"


async def test_nothing_is_lost_by_rotations_while_it_follows(logs, follow, small_files):
    follower = follow()
    found = []
    for start in range(0, 300, 10):
        for number in range(start, start + 10):
            logs.printed(f"{number}")
        found += await take(follower, 10)
    assert found == [f"{number}" for number in range(300)]


async def test_lines_written_between_the_last_look_and_the_rotation_are_read(logs, follow):
    logs.printed("a")
    follower = follow()
    assert await take(follower, 1) == ["a"]
    logs.printed("b")
    logs.rotate()
    logs.printed("c")
    logs.rotate()
    logs.printed("d")
    assert await take(follower, 3) == ["b", "c", "d"]


async def test_a_reader_that_is_too_slow_gets_what_it_holds_and_is_told(logs, follow):
    logs.printed("a")
    follower = follow()
    assert await take(follower, 1) == ["a"]
    logs.printed("b")
    size = (logs.directory / "exec.log").stat().st_size
    for _ in range(5):
        logs.rotate()
        logs.printed("lost")
    assert await take(follower, 1) == ["b"]
    with pytest.raises(
        LogRotatedError, match=rf"^log stream missed rotation \(dropped from offset {size}\)$"
    ):
        await follower.next()
    assert await follower.next() is None


async def test_going_on_from_a_cursor_across_a_rotation(logs, follow):
    logs.printed("a")
    logs.printed("b")
    cursor = (await follow().next()).cursor
    logs.rotate()
    logs.printed("c")
    assert await rest(follow(cursor, follow=False)) == ["b", "c"]


async def test_a_cursor_of_a_file_that_is_gone(logs, follow):
    logs.printed("a")
    cursor = (await follow().next()).cursor
    [(inode, _)] = load_cursor(cursor, 1)
    held = (logs.directory / "exec.log").open()  # so that its inode is not given to another
    for _ in range(5):
        logs.rotate()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        LogCursorError,
        match=f"^invalid log cursor: exec.log generation {inode} is not in the current rotation chain$",
    ):
        follow(cursor)
    assert len(os.listdir("/proc/self/fd")) == before
    held.close()


async def test_since_and_until(logs, follow):
    for number in range(6):
        logs.printed(f"{number}", at=number)
    assert await rest(follow(since_ms=NOON + 2, until_ms=NOON + 4)) == ["2", "3"]


async def test_a_log_that_is_yet_to_be_begun(logs, follow):
    follower = follow()
    task = await waiting(follower)
    logs.printed("first")
    assert (await asyncio.wait_for(task, 5)).text() == "first"


async def test_finishing_ends_it_after_what_is_there(logs, follow):
    logs.printed("a")
    follower = follow()
    assert await take(follower, 1) == ["a"]
    task = await waiting(follower)
    logs.printed("b")
    logs.rotate()
    logs.printed("c")
    follower.finish()
    assert (await asyncio.wait_for(task, 5)).text() == "b"
    assert await rest(follower) == ["c"]


async def test_it_ends_when_the_sandbox_is_removed(logs, follow):
    logs.printed("a")
    follower = follow()
    assert await take(follower, 1) == ["a"]
    task = await waiting(follower)
    aside = logs.directory.parent / "aside"
    logs.directory.rename(aside)
    logs.directory.mkdir()
    (logs.directory / "exec.log").write_bytes(b"of a sandbox that replaces it\n")
    shutil.rmtree(aside)
    assert await asyncio.wait_for(task, 5) is None


async def test_dropped_it_leaves_nothing_open(logs):
    logs.printed("a")
    before = len(os.listdir("/proc/self/fd"))
    followers = [LogFollower(logs.directory, OUTPUT, follow=True)]
    await take(followers[0], 1)
    with pytest.warns(ResourceWarning):
        followers.clear()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_cancelled_or_closed_it_leaves_nothing_open(logs, follow):
    logs.printed("a")
    before = len(os.listdir("/proc/self/fd"))
    follower = follow(sources=select(["all"]))
    await take(follower, 1)
    task = await waiting(follower)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    logs.printed("b")
    assert await take(follower, 1) == ["b"], "a cancelled wait loses nothing"
    follower.close()
    assert await follower.next() is None
    assert len(os.listdir("/proc/self/fd")) == before
