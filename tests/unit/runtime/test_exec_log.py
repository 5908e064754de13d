"""What commands print is kept line by line, whatever it is, and whatever becomes of the disk."""

import asyncio
import json
import logging
import os
import re

import pytest

from microsandbox.agent.protocol import MessageType, encode
from microsandbox.runtime import log_files
from microsandbox.runtime.exec_log import STARTED, ExecLog
from microsandbox.runtime.log_files import RotatingFile
from tests.unit.runtime.conftest import settle


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "exec.log"


@pytest.fixture
async def exec_log(tmp_path):
    log = ExecLog.open(tmp_path)
    yield log
    log.close()


def printed(id, data, kind=MessageType.EXEC_STDOUT):
    return encode(id, kind, {"data": data})


async def test_a_line_has_time_source_text_and_the_number_of_its_command(exec_log, path):
    exec_log.mark(STARTED)
    exec_log.begin(7, {"tty": False})
    exec_log.begin(8, {"tty": True})
    exec_log.take(printed(8, b"on a terminal"))
    exec_log.take(printed(7, "größer\n".encode()))
    exec_log.take(printed(7, b"e", MessageType.EXEC_STDERR))
    exec_log.close()
    found = lines(path)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("t")) for line in found)
    assert found == [
        {"s": "system", "d": "--- sandbox started ---\n"},
        {"s": "output", "d": "on a terminal", "id": 2},
        {"s": "stdout", "d": "größer\n", "id": 1},
        {"s": "stderr", "d": "e", "id": 1},
    ]


async def test_what_is_not_text_is_kept_as_it_is(exec_log, path):
    exec_log.begin(1, {})
    exec_log.take(printed(1, "ö".encode()[:1]))
    exec_log.take(printed(1, b"a\0b"))
    exec_log.close()
    assert [(line["d"], line["e"]) for line in lines(path)] == [("ww==", "b64"), ("YQBi", "b64")]


async def test_lines_are_written_when_the_loop_has_a_turn(exec_log, path):
    exec_log.begin(1, {})
    for _ in range(100):
        exec_log.take(printed(1, b"x"))
    assert path.stat().st_size == 0
    await asyncio.sleep(0)
    assert len(lines(path)) == 100


async def test_a_guest_cannot_make_long_lines(exec_log, path):
    exec_log.begin(1, {})
    exec_log.take(printed(1, b"\x01" * (1 << 20)))
    exec_log.close()
    assert max(map(len, path.read_bytes().splitlines())) < 512 << 10
    assert sum(len(line["d"]) for line in lines(path)) == 1 << 20


async def test_what_is_not_output_of_a_known_command_is_not_kept(exec_log, path):
    exec_log.begin(1, {})
    exec_log.take(encode(1, MessageType.EXEC_STARTED, {"pid": 5}))
    exec_log.take(encode(1, MessageType.EXEC_STDOUT, {"data": "not bytes"}))
    exec_log.take(printed(2, b"nobody's"))
    exec_log.end(1)
    exec_log.take(printed(1, b"too late"))
    exec_log.close()
    assert path.read_bytes() == b""


async def test_a_file_is_rotated_between_lines_and_four_old_ones_are_kept(exec_log, path, monkeypatch):
    monkeypatch.setattr(log_files, "MAX_BYTES", 1000)
    exec_log.begin(1, {})
    for number in range(100):
        exec_log.take(printed(1, b"%03d" % number))
        await asyncio.sleep(0)
    files = [path, *(path.with_name(f"exec.log.{number}") for number in range(1, 5))]
    assert sorted(path.parent.iterdir()) == sorted(files)
    assert all(0 < file.stat().st_size <= 1000 for file in files)
    kept = [int(line["d"]) for file in reversed(files) for line in lines(file)]
    assert kept == list(range(100))[-len(kept) :]


class FullDisk:
    """In place of os.write: takes so many bytes, then none."""

    def __init__(self, monkeypatch, room):
        self.room, self.write = room, os.write
        monkeypatch.setattr(log_files.os, "write", self)

    def __call__(self, fd, data):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        done = self.write(fd, data[: self.room])
        self.room -= done
        return done


async def test_a_full_disk_loses_lines_says_so_once_and_later_goes_on(exec_log, path, monkeypatch, caplog):
    disk = FullDisk(monkeypatch, 100)
    exec_log.begin(1, {})
    with caplog.at_level(logging.WARNING):
        for number in range(10):
            exec_log.take(printed(1, b"%d" % number * 10))
            await asyncio.sleep(0)
    assert [record.message for record in caplog.records] == [
        "exec.log: the disk takes no more, lines are lost"
    ]
    disk.room = 1 << 20
    exec_log.take(printed(1, b"again"))
    exec_log.close()
    assert [line["d"] for line in lines(path)] == ["0" * 10, "again"], "and no half line between them"


def test_after_a_crash_in_the_middle_of_a_line_the_next_one_is_whole(path):
    path.write_bytes(b'{"t":"2026-01-01T00:00:00.000Z","s":"std')
    file = RotatingFile(path)
    file.write(b"next\n")
    file.close()
    assert path.read_bytes().splitlines()[1:] == [b"next"]


def test_a_rotation_that_fails_leaves_the_files_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "MAX_BYTES", 10)
    (tmp_path / "a.log.new").mkdir()
    file = RotatingFile(tmp_path / "a.log")
    assert [file.write(b"12345\n"), file.write(b"67890\n"), file.write(b"67890\n")] == [True, False, False]
    (tmp_path / "a.log.new").rmdir()
    assert file.write(b"abcde\n")
    file.close()
    assert [(tmp_path / name).read_bytes() for name in ("a.log", "a.log.1")] == [b"abcde\n", b"12345\n"]


def test_a_log_that_cannot_be_opened_is_no_reason_not_to_run(tmp_path, caplog):
    (tmp_path / "exec.log").mkdir()
    log = ExecLog.open(tmp_path)
    log.mark(STARTED)
    log.begin(1, {})
    log.take(printed(1, b"x"))
    log.close()
    assert "what commands print is not kept" in caplog.text


async def test_the_relay_keeps_the_commands_of_all_clients_and_numbers_them(world, tmp_path):
    for number in (1, 2):
        client = await world.client()
        session = await client.open_session(MessageType.EXEC_REQUEST, {"cmd": "x", "tty": number == 2})
        await settle()
        world.guest.sock.sendall(printed(session.id, b"from %d" % number).raw)
        await settle()
        world.guest.end(session.id)
    await settle()
    found = [(line["s"], line["id"], line["d"]) for line in lines(tmp_path / "logs" / "exec.log")]
    assert found == [("stdout", 1, "from 1"), ("output", 2, "from 2")]
    assert world.relay.exec_log._sessions == {}
