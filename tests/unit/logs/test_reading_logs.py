"""Log files as entries: all at once, sorted, filtered."""

import os
import random
import subprocess
import sys

import pytest

from microsandbox.logs.cursor import BEGINNING, Position, dump_cursor, load_cursor
from microsandbox.logs.lines import parse_text
from microsandbox.logs.reader import LogReader
from microsandbox.logs.snapshot import snapshot
from microsandbox.logs.sources import select
from tests.unit.logs.conftest import NOON, stamp

OUTPUT, ALL = select(None), select(["all"])


def texts(logs, sources=OUTPUT, **filters):
    return [entry.text() for entry in snapshot(logs.directory, sources, **filters).entries]


def test_sources_by_name():
    assert select([]) == select(None) == {"stdout", "stderr", "output"}
    assert select(["system", "stderr"]) == {"system", "stderr"}
    assert select(["all"]) == {"stdout", "stderr", "output", "system"}
    with pytest.raises(ValueError, match='^unknown log source "stdin"$'):
        select(["stdin"])


def test_an_entry_has_all_that_its_line_says(logs):
    logs.printed("hello\n", at=123, source="stderr", id=7)
    [entry] = snapshot(logs.directory, OUTPUT).entries
    assert (entry.timestamp_ms, entry.source, entry.session_id, entry.data) == (
        NOON + 123, "stderr", 7, b"hello\n",
    )  # fmt: skip
    assert repr(entry) == f'LogEntry(source="stderr", session_id=Some(7), timestamp_ms={NOON + 123}.0, len=6)'


def test_binary_data_comes_back_as_it_was(logs):
    logs.printed("/wA=", e="b64")
    [entry] = snapshot(logs.directory, OUTPUT).entries
    assert (entry.data, entry.text()) == (b"\xff\0", "�\0")


def test_sources_are_told_apart_and_system_has_the_other_files_too(logs):
    for source in ("stdout", "stderr", "output", "system"):
        logs.printed(source, source=source)
    logs.write("runtime.log", f"{stamp(NOON + 5)} INFO it runs\n".encode())
    logs.write("kernel.log", b"\x1b[1;31mLinux\x1b[0m version\r\n")
    assert texts(logs) == ["stdout", "stderr", "output"]
    assert texts(logs, select(["output"])) == ["output"]
    assert texts(logs, select(["system"])) == ["system", "INFO it runs\n", "Linux version\n"]
    assert len(texts(logs, ALL)) == 6
    assert {entry.session_id for entry in snapshot(logs.directory, select(["system"])).entries} == {None}


def test_times_of_text_lines():
    at = parse_text(f"{stamp(NOON)} INFO x\n".encode(), 1.0)
    assert (at.timestamp_ms, at.data) == (NOON, b"INFO x\n")
    for line in (b"12:00Z x\n", b"2026-99-99T99:99:99.000Z x\n", b"not-a-time-at-all-but-long-Z x\n"):
        assert parse_text(line, 1.0).timestamp_ms == 1.0
        assert parse_text(line, 1.0).data == line


def test_all_generations_in_the_order_of_time(logs):
    for number in range(4):
        logs.printed(f"{number}", at=number)
        logs.rotate()
    logs.write("runtime.log", f"{stamp(NOON + 2)} beside\n".encode())
    logs.printed("early", at=-1)
    assert texts(logs, ALL) == ["early", "0", "1", "2", "beside\n", "3"]


def test_since_is_included_until_is_not_and_tail_comes_last(logs):
    for number in range(10):
        logs.printed(f"{number}", at=number)
    assert texts(logs, since_ms=NOON + 3, until_ms=NOON + 6) == ["3", "4", "5"]
    assert texts(logs, since_ms=NOON + 3, until_ms=NOON + 6, tail=2) == ["4", "5"]
    assert (texts(logs, tail=0), len(texts(logs, tail=99))) == ([], 10)
    assert texts(logs, matches=lambda data: data in b"135", tail=2) == ["3", "5"]


@pytest.mark.parametrize("seed", range(5))
def test_a_part_is_cut_out_of_the_whole_whatever_clocks_did(logs, seed):
    """The same entries with the same cursors, though what is not wanted is dropped as it is read."""
    dice = random.Random(seed)
    for number in range(300):
        at = number + dice.choice([0, 0, 0, -50, 50])
        logs.printed(f"{number}", at=at, source=dice.choice(["stdout", "stderr", "system"]))
        if dice.random() < 0.5:
            logs.write("runtime.log", f"{stamp(NOON + at)} INFO {number}\n".encode())
        if dice.random() < 0.01:
            logs.rotate(dice.choice(list(logs.files)))

    def entries(**filters):
        found = snapshot(logs.directory, ALL, **filters).entries
        return [(entry.timestamp_ms, entry.source, entry.data, entry.cursor) for entry in found]

    everything = entries()
    assert len(everything) > 300
    assert [entry[0] for entry in everything] == sorted(entry[0] for entry in everything)
    for tail in (0, 1, 7, 100, len(everything), 1000):
        assert entries(tail=tail) == everything[max(len(everything) - tail, 0) :]
    since, until = NOON + 90, NOON + 220
    assert entries(since_ms=since) == [entry for entry in everything if entry[0] >= since]
    wanted = [entry for entry in everything if since <= entry[0] < until]
    assert entries(since_ms=since, until_ms=until, tail=20) == wanted[-20:]
    odd = [entry[:3] for entry in everything if entry[2].strip()[-1:] in b"13579"]
    found = entries(matches=lambda data: data.strip()[-1:] in b"13579", tail=30)
    assert [entry[:3] for entry in found] == odd[-30:]


_LAST_OF_MANY = """
import sys
from pathlib import Path
from microsandbox.logs.snapshot import snapshot
from microsandbox.logs.sources import select

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

before = peak()
found = snapshot(Path(sys.argv[1]), select(None), tail=100).entries
print(len(found), found[-1].text().strip(), peak() - before)
"""


def test_the_last_hundred_of_50_mib_take_a_few_mib(logs):
    number, line = 0, '{"t":"%s","s":"stdout","d":"line %d of a program that prints a lot","id":1}\n'
    for file in range(5):
        if file:
            logs.rotate()
        block = "".join(line % (stamp(NOON + at), at) for at in range(number, number + 110_000))
        logs.write("exec.log", block.encode())
        number += 110_000
    assert sum(file.stat().st_size for file in logs.directory.iterdir()) > 50_000_000
    done = subprocess.run(
        [sys.executable, "-c", _LAST_OF_MANY, logs.directory], capture_output=True, text=True, check=True
    )
    count, *last, kib = done.stdout.split()
    assert (count, last[:2]) == ("100", ["line", "549999"])
    assert int(kib) < 16 << 10, f"{kib} KiB; sorting all of them takes 220 MiB"


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage\n", b"\n", b"\0\0\0\n", b"[]\n", b'{"t":"today","s":"stdout","d":"x"}\n',
        b'{"t":"2026-01-01T12:00:00.000Z","s":"stdin","d":"x"}\n',
        b'{"t":"2026-01-01T12:00:00","s":"stdout","d":"x"}\n',
        b'{"t":"2026-01-01T12:00:00.000Z","s":"stdout","d":"!","e":"b64"}\n',
        b'{"t":"2026-01-01T12:00:00.000Z","s":"stdout","d":"x","e":"rot13"}\n',
        b"x" * (3 << 20) + b"\n",
    ],
)  # fmt: skip
def test_what_is_no_line_is_passed_over(logs, damage):
    logs.printed("before")
    logs.write("exec.log", damage)
    logs.printed("after")
    assert texts(logs) == ["before", "after"]


def test_a_line_cut_by_a_crash_is_passed_over_and_so_is_the_newline_of_the_next_run(logs):
    logs.printed("before")
    logs.write("exec.log", b'{"t":"2026-01-01T12:00:00.000Z","s":"std')
    assert texts(logs) == ["before"]
    logs.close()
    logs.files.clear()
    logs.printed("after")
    assert texts(logs) == ["before", "after"]


def test_the_last_words_of_a_kernel_need_no_newline(logs):
    logs.write("kernel.log", b"Kernel panic")
    assert texts(logs, select(["system"])) == ["Kernel panic\n"]


def test_only_newlines_end_a_line(logs):
    logs.write("kernel.log", b"a\x0b\x0c\x1cb\n")
    assert texts(logs, select(["system"])) == ["a\x0b\x0c\x1cb\n"]


def test_a_cursor_is_a_count_and_positions_in_base64():
    positions = [Position(7, 1 << 40), BEGINNING, Position(2**64 - 1, 3)]
    assert load_cursor(dump_cursor(positions), 3) == tuple(positions)
    assert dump_cursor([Position(1, 2)]) == "AQEAAAAAAAAAAgAAAAAAAAA="


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("?", "cursor is not valid base64"), ("AQ", "cursor is not valid base64"),
        ("ü", "cursor is not valid base64"), ("", r"cursor payload has unexpected length \(0 bytes\)"),
        ("AQ==", r"cursor payload has unexpected length \(1 bytes\)"),
        (dump_cursor([BEGINNING] * 3), r"cursor payload has unexpected length \(49 bytes\)"),
    ],
)  # fmt: skip
def test_what_is_no_cursor_of_these_files(text, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        load_cursor(text, 1)


def test_each_entry_of_a_snapshot_is_a_place_to_go_on_from(logs):
    for number in range(6):
        logs.printed(f"{number}", at=number)
        if number % 2:
            logs.rotate()
    entries = snapshot(logs.directory, OUTPUT).entries
    for place, entry in enumerate(entries):
        reader = LogReader(logs.directory, OUTPUT, load_cursor(entry.cursor, 1))
        rest = []
        while found := reader.step():
            rest += [item.record.data for item in found]
        reader.close()
        assert rest == [later.data for later in entries[place + 1 :]]


def test_reading_leaves_nothing_open(logs):
    before = os.listdir("/proc/self/fd")
    logs.printed("x")
    logs.rotate()
    opened = len(os.listdir("/proc/self/fd"))
    snapshot(logs.directory, ALL)
    assert len(os.listdir("/proc/self/fd")) == opened
    assert len(before) <= opened
