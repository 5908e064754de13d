"""Lines on standard output, for readers that read, stall, or go."""

import fcntl
import os
from contextlib import suppress

import msgspec
import pytest

from microsandbox.exporter.collection import Collection, Reading
from microsandbox.exporter.pipeline import ExportError, Health
from microsandbox.exporter.stdout import StdoutExporter, render

READING = Reading("box", 3, 7, 99, (), 1.5, 14 << 20, 256 << 20, 512, 6 << 20, 8, 0, 59.94)
LINE = (
    "2023-11-14T22:13:20.000Z sandbox=box id=3 cpu=1.500000 mem=14.0 MiB / 256.0 MiB disk_r=512 B "
    "disk_w=6.0 MiB net_rx=8 B net_tx=0 B uptime=59.9s"
)


def collection(*readings):
    return Collection(1_700_000_000.0, readings)


def reading(**changes):
    return msgspec.structs.replace(READING, **changes)


@pytest.fixture
def pipe():
    """A pipe that is full after a page; both ends are closed afterwards."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    yield read, write
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("given", "dropped", "text"),
    [
        ((), 0, "2023-11-14T22:13:20.000Z (no active sandboxes)\n"),
        ((READING,), 0, f"{LINE}\n"),
        ((reading(uptime=125.0),), 0, f"{LINE.replace('59.9s', '2m5s')}\n"),
        ((reading(cpu=None),), 0, f"{LINE.replace('1.500000', '0.000000')}\n"),
        ((reading(labels=(("a", "1"), ("b", "2"))),), 0, f"{LINE} labels={{a=1,b=2}}\n"),
        ((READING, READING), 3, f"{LINE}\n{LINE}\n  (dropped 3 stale collections from buffer)\n"),
        ((reading(name="x\x1b\n", labels=(("a", "\r"),)),), 0,
         f"{LINE.replace('=box', '=x��')} labels={{a=�}}\n"),
    ],
)  # fmt: skip
def test_the_lines_of_a_collection(given, dropped, text):
    assert render(collection(*given), dropped) == text


def test_dropped_collections_are_told_of_once(tmp_path):
    with open(tmp_path / "out", "wb+", buffering=0) as out:
        exporter = StdoutExporter(1, out.fileno())
        for dropped in (0, 2, 2):
            exporter.export(collection(), Health(dropped=dropped))
    assert (tmp_path / "out").read_text().count("(dropped 2 stale") == 1


def test_a_reader_that_stalls_is_an_error_and_gets_every_line_once_when_it_goes_on(pipe):
    read, write = pipe
    exporter = StdoutExporter(0.05, write)
    many = collection(*(reading(sandbox_id=number) for number in range(50)))
    exporter.export(many, Health())  # one page is taken, and the rest is on its way
    with pytest.raises(ExportError, match=r"^standard output took nothing for 0\.05 s$"):
        exporter.export(collection(), Health())
    text = b""
    while len(text) < len(render(many, 0)):
        text += os.read(read, 4096)
        with suppress(ExportError):
            exporter.close()
    assert text.decode() == render(many, 0)
    exporter.export(collection(), Health())
    exporter.close()
    assert os.read(read, 4096).endswith(b"(no active sandboxes)\n")


def test_nothing_was_taken_so_nothing_was_exported(pipe):
    read, write = pipe
    os.write(write, b"x" * 4096)
    exporter = StdoutExporter(0.01, write)
    with pytest.raises(ExportError):
        exporter.export(collection(READING), Health())
    exporter.close()
    assert os.read(read, 8192) == b"x" * 4096


def test_a_reader_that_has_gone():
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        StdoutExporter(1, write).export(collection(), Health())
    os.close(write)


def test_a_full_disk_is_an_error():
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(ExportError, match="No space left on device"):
            StdoutExporter(1, full.fileno()).export(collection(), Health())
