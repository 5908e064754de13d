"""``logs`` and ``log_stream``: their arguments and errors; what is read is tested in unit/logs."""

import math

import pytest

from microsandbox import LogStream, Sandbox, SandboxNotFoundError
from microsandbox.errors import LogCursorError
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.stored_config import dump_config
from tests.unit.logs.conftest import NOON, Logs


@pytest.fixture
async def handle(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    Context.current().sandboxes.create("box", dump_config(SandboxConfig("box", OciImage("a", 64))), {}, None)
    return await Sandbox.get("box")


@pytest.fixture
def logs(handle, tmp_path):
    logs = Logs(tmp_path / "sandboxes" / "box" / "logs")
    for number in range(5):
        logs.printed(f"{number}", at=number)
    yield logs
    logs.close()


async def texts(stream):
    return [entry.text() async for entry in stream]


async def test_reading_with_filters(handle, logs):
    found = await handle.logs(tail=2, since_ms=NOON + 1, until_ms=NOON + 4, sources=["stdout", "system"])
    assert [(entry.text(), entry.timestamp_ms) for entry in found] == [("2", NOON + 2), ("3", NOON + 3)]


async def test_times_that_no_clock_shows_filter_nothing(handle, logs):
    for time in (math.nan, math.inf, -math.inf, 1e300):
        assert len(await handle.logs(since_ms=time, until_ms=time)) == 5


async def test_a_stream_goes_on_from_an_entry(handle, logs):
    stream = await handle.log_stream()
    assert isinstance(stream, LogStream)
    await anext(stream)
    second = await anext(stream)
    await stream.aclose()
    assert await texts(stream) == []
    assert await texts(await handle.log_stream(from_cursor=second.cursor)) == ["2", "3", "4"]
    assert await texts(await handle.log_stream(since_ms=NOON + 3)) == ["3", "4"]
    assert await texts(await handle.log_stream(until_ms=NOON + 1)) == ["0"]


async def test_without_a_log_directory_there_is_no_sandbox(handle):
    for operation in (handle.logs, handle.log_stream):
        with pytest.raises(SandboxNotFoundError, match="^sandbox not found: box$"):
            await operation()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"sources": ["stdin"]}, 'unknown log source "stdin"'),
        ({"since_ms": 1, "from_cursor": "AA=="}, "since_ms and from_cursor are mutually exclusive"),
        ({"since_ms": math.nan}, "invalid since_ms value nan"),
        ({"until_ms": math.inf}, "invalid until_ms value inf"),
        ({"from_cursor": "?"}, "invalid from_cursor: cursor is not valid base64"),
        ({"from_cursor": "AA=="}, r"invalid from_cursor: cursor payload has unexpected length \(1 bytes\)"),
    ],
)
async def test_arguments_that_are_wrong(handle, logs, options, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        await handle.log_stream(**options)


async def test_arguments_of_the_wrong_type(handle, logs):
    for options in ({"tail": "1"}, {"since_ms": "1"}, {"sources": "stdout"}, {"sources": [1]}):
        with pytest.raises(TypeError):
            await handle.logs(**options)
    with pytest.raises(OverflowError):
        await handle.logs(tail=-1)
    with pytest.raises(ValueError, match='unknown log source "x"'):
        await handle.logs(sources=["x"])


async def test_a_cursor_whose_file_is_gone(handle, logs):
    [last] = await handle.logs(tail=1)
    for _ in range(5):
        logs.rotate()
    with pytest.raises(LogCursorError, match=r"^invalid log cursor: exec\.log generation "):
        await handle.log_stream(from_cursor=last.cursor)
