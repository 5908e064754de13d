"""Files and commands over a real socket, with a guest that says what the test tells it to, true or not."""

import asyncio

import pytest

from microsandbox.agent.protocol import MessageType
from microsandbox.errors import FilesystemError, IoError, SandboxPausedError
from microsandbox.sandbox import exec as exec_module
from microsandbox.sandbox.exec_options import exec_request, parse_exec
from microsandbox.sandbox.fs import SandboxFsOps

M = MessageType


def answering(*data):
    """Answers file requests with this data, the last one for good."""
    left = list(data)

    def answer(kind, payload):
        value = left.pop(0) if len(left) > 1 else left[0]
        return [(M.FS_RESPONSE, {"ok": True, "data": value})]

    return answer


@pytest.mark.parametrize(
    ("operation", "data"),
    [
        (lambda fs: fs.stat("/x"), None),
        (lambda fs: fs.stat("/x"), {"Stat": 5}),
        (lambda fs: fs.stat("/x"), {"Stat": [1]}),
        (lambda fs: fs.read("/x"), {"Handle": "one"}),
        (lambda fs: fs.read("/x"), {"Handle": None}),
        (lambda fs: fs.list("/x"), {"Handle": 1}),
        (lambda fs: fs.list("/x"), {"Handle": 1, "List": 5}),
        (lambda fs: fs.list("/x"), {"Handle": 1, "List": [5]}),
        (lambda fs: fs.list("/x"), {"Handle": 1, "List": {"a": 1}}),
    ],
)
async def test_nonsense_from_the_guest_is_a_file_error(guest, operation, data):
    connection, _ = await guest(answering(data))
    with pytest.raises(FilesystemError, match="sandbox fs error: the guest's response has"):
        await operation(SandboxFsOps(connection))


async def test_a_directory_without_end_is_not_believed(guest, monkeypatch):
    monkeypatch.setattr("microsandbox.sandbox.fs._MAX_ENTRIES", 3)
    connection, _ = await guest(answering({"Handle": 1, "List": [{"path": "a"}, {"path": "b"}]}))
    with pytest.raises(FilesystemError, match="readdir: more than 3 entries"):
        await SandboxFsOps(connection).list("/x")


async def test_entries_are_values_with_whole_paths(guest):
    entry = {"path": "a", "kind": "dir", "size": 5, "mode": 0o40755, "modified": 2}
    connection, _ = await guest(answering({"Handle": 1}, {"List": [entry]}, {"List": []}, None))
    [found] = await SandboxFsOps(connection).list("/x/")
    assert (found.path, found.kind, found.size, found.mode, found.modified) == (
        "/x/a", "directory", 5, 0o40755, 2000.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (lambda fs: fs.read(5), "argument 'path': 'int' object cannot be converted to 'PyString'"),
        (lambda fs: fs.stat(None), "argument 'path': 'NoneType' object cannot be converted to 'PyString'"),
        (lambda fs: fs.copy("/a", 1), "argument 'dst': 'int' object cannot be converted to 'PyString'"),
        (lambda fs: fs.write("/a", "text"), "argument 'data': Can't extract `str` to `Vec`"),
        (lambda fs: fs.write("/a", 5), "argument 'data': 'int' object cannot be converted to 'Sequence'"),
        (
            lambda fs: fs.copy_to_host("/a", None),
            "argument 'host_path': 'NoneType' object cannot be converted to 'PyString'",
        ),
    ],
)
async def test_arguments_of_the_wrong_type_do_not_reach_the_guest(guest, operation, text):
    connection, told = await guest(answering(None))
    with pytest.raises(TypeError) as caught:
        await operation(SandboxFsOps(connection))
    assert str(caught.value) == text
    assert told.heard == []


async def test_a_copy_the_host_cannot_take_closes_the_guest_s_file(guest, tmp_path):
    def answer(kind, payload):
        operation = payload["op"]
        if "OpenFile" in operation:
            return [(M.FS_RESPONSE, {"ok": True, "data": {"Handle": 7}})]
        if "Read" in operation:
            return [(M.FS_DATA, {"data": b"x"})]
        return [(M.FS_RESPONSE, {"ok": True, "data": None})]

    connection, told = await guest(answer)
    with pytest.raises(IoError, match=r"\(os error 2\)"):
        await SandboxFsOps(connection).copy_to_host("/x", str(tmp_path / "none" / "x"))
    closing = (M.FS_REQUEST, {"op": {"CloseHandle": {"handle": 7}}})
    async with asyncio.timeout(5):
        while told.heard[-1] != closing:  # nobody waits for the guest's word on it
            await asyncio.sleep(0.01)


async def test_a_file_operation_on_a_silent_guest_can_be_given_up(guest):
    def answer(kind, payload):
        opened = kind is M.FS_REQUEST and "OpenFile" in payload["op"]
        return [(M.FS_RESPONSE, {"ok": True, "data": {"Handle": 7}})] if opened else []

    connection, _ = await guest(answer)
    async with asyncio.timeout(5):
        for operation in (SandboxFsOps(connection).write("/x", b"y"), SandboxFsOps(connection).read("/x")):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(operation, 0.2)


async def test_a_paused_sandbox_is_an_error_of_its_own(guest, config):
    refusal = {"kind": "sandbox_paused", "message": "the sandbox is paused; resume it first"}
    connection, _ = await guest(
        lambda kind, payload: [(M.ERROR, refusal)] if kind in (M.EXEC_REQUEST, M.FS_REQUEST) else []
    )
    options = parse_exec("true")
    handle = await exec_module.start(connection, exec_request(options, config), options)
    for waiting in (
        handle.collect(),
        SandboxFsOps(connection).exists("/"),
        SandboxFsOps(connection).read("/"),
    ):
        with pytest.raises(SandboxPausedError, match="the sandbox is paused; resume it first"):
            await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize(
    ("stdin", "sent"),
    [(None, [b""]), (b"in", [b"in", b""]), (b"", [b""])],
)
async def test_a_command_s_input_ends(guest, config, stdin, sent):
    def answer(kind, payload):
        if kind is M.EXEC_STDIN and not payload["data"]:
            return [(M.EXEC_STDOUT, {"data": b"out"}), (M.EXEC_EXITED, {"code": 3})]
        return []

    connection, told = await guest(answer)
    options = parse_exec("cat", stdin=stdin)
    handle = await exec_module.start(connection, exec_request(options, config), options)
    output = await asyncio.wait_for(handle.collect(), 5)
    assert (output.exit_code, output.stdout_bytes) == (3, b"out")
    assert [payload["data"] for kind, payload in told.heard if kind is M.EXEC_STDIN] == sent


async def test_numbers_are_not_taken_for_that_many_zero_bytes(guest, config):
    connection, told = await guest(
        lambda kind, payload: [(M.EXEC_EXITED, {"code": 0})] if kind is M.EXEC_STDIN else []
    )
    options = parse_exec("cat", stdin="pipe")
    handle = await exec_module.start(connection, exec_request(options, config), options)
    sink = handle.take_stdin()
    with pytest.raises(TypeError, match="argument 'data': 'int' object"):
        await sink.write(5)
    with pytest.raises(OverflowError):
        await handle.signal(-9)
    assert handle.take_stdin() is None
    await sink.close()
    assert await asyncio.wait_for(handle.wait(), 5) == (0, True)
    assert [kind for kind, _ in told.heard] == [M.EXEC_REQUEST, M.EXEC_STDIN]
