"""Archives can be read back, by us and by cpio; a damaged one is noticed wherever it is cut."""

import io
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microsandbox.vmm.cpio import CpioError, CpioWriter, Entry, read_entries

ENTRIES = [
    Entry.directory("dev", 0o700),
    Entry.character_device("dev/console", 5, 1),
    Entry.file("init", b"#!/bin/sh\n", 0o755),
    Entry.file("empty", b""),
    Entry.file("odd", b"12345"),
]


def archive(entries):
    file = io.BytesIO()
    writer = CpioWriter(file)
    for entry in entries:
        writer.add(entry)
    writer.finish()
    return file.getvalue()


def test_what_is_written_is_read_back():
    assert list(read_entries(archive(ENTRIES))) == ENTRIES


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(
    st.lists(st.builds(Entry.file, names.filter(lambda name: name != "TRAILER!!!"), st.binary(max_size=70)))
)
def test_any_names_and_contents_are_read_back(entries):
    assert list(read_entries(archive(entries))) == entries


def test_cpio_reads_it_too():
    listed = subprocess.run(
        ["cpio", "-itv", "--quiet", "--numeric-uid-gid"],
        input=archive(ENTRIES),
        capture_output=True,
        check=True,
    )
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    modes = {line[-1]: line[0] for line in lines}
    assert modes == {entry.name: stat.filemode(entry.mode) for entry in ENTRIES}
    console = next(line for line in lines if line[-1] == "dev/console")
    assert console[4:6] == ["5,", "1"]


def test_equal_entries_make_equal_archives():
    assert archive(ENTRIES) == archive(ENTRIES)


def test_an_archive_that_is_cut_short_is_refused_wherever_it_is_cut():
    whole = archive(ENTRIES)
    end = whole.rindex(b"TRAILER!!!") + len(b"TRAILER!!!")
    for length in range(end):
        with pytest.raises(CpioError):
            list(read_entries(whole[:length]))


@pytest.mark.parametrize("field", [b"zzzzzzzz", b"00000000", b"FFFFFFFF"])
def test_an_entry_with_an_impossible_name_length_is_refused(field):
    whole = archive(ENTRIES)
    with pytest.raises(CpioError, match="damaged entry at byte 0"):
        list(read_entries(whole[:94] + field + whole[102:]))
