"""A Sandbox object around a real process, catalogue and connection: its properties, and letting go of it."""

import asyncio
import inspect
import subprocess

import pytest

from microsandbox import Sandbox, SandboxHandle
from microsandbox.errors import InvalidConfigError, NotSupportedYetError, SandboxNotFoundError
from microsandbox.runtime.process import ProcessHandle
from microsandbox.sandbox.stored_config import dump_config


@pytest.fixture
async def sandbox(context, guest, config):
    connection, _ = await guest(lambda kind, payload: [])
    row = context.sandboxes.create("box", dump_config(config), {"team": "a"}, None)
    process = subprocess.Popen(["sleep", "60"])
    handle = ProcessHandle(process.pid, "box", watchdog=None)
    yield Sandbox(context, row, config, connection, handle)
    if handle.try_wait() is None:
        handle.kill()
        await handle.wait()
    process.returncode = 0  # it was reaped by the handle


async def test_properties_can_be_awaited_and_used(sandbox):
    assert await sandbox.name == "box"
    assert sandbox.name == "box"
    assert await sandbox.owns_lifecycle is True
    assert sandbox.owns_lifecycle


async def test_a_released_sandbox_is_ended_and_consumed(sandbox):
    process = sandbox._process
    sandbox.release()
    assert (await asyncio.wait_for(process.wait(), 5)).signal == 15
    with pytest.raises(RuntimeError, match="sandbox has been consumed"):
        _ = sandbox.fs
    with pytest.raises(RuntimeError, match="sandbox has been consumed"):
        _ = sandbox.name
    with pytest.raises(RuntimeError, match="sandbox has been consumed"):
        await sandbox.exec("ls")
    sandbox.release()


async def test_a_detached_sandbox_lives_on(sandbox):
    process = sandbox._process
    await sandbox.detach()
    await sandbox.detach()
    sandbox.release()
    assert process.try_wait() is None
    with pytest.raises(RuntimeError, match="sandbox has been consumed"):
        await sandbox.stop()


@pytest.mark.parametrize(
    ("feature", "operation"),
    [
        ("ssh", lambda box: box.ssh()),
    ],
)
async def test_what_is_not_there_yet_is_named(sandbox, feature, operation):
    with pytest.raises(NotSupportedYetError) as caught:
        found = operation(sandbox)
        if inspect.isawaitable(found):
            await found
    assert caught.value.feature == feature


async def test_timeouts_are_not_negative(sandbox):
    for operation in (sandbox.stop, sandbox.kill):
        with pytest.raises(ValueError, match="timeout must be non-negative"):
            await operation(-1)


async def test_handles_by_name_and_label(sandbox):
    handle = await Sandbox.get("box")
    assert isinstance(handle, SandboxHandle)
    assert (handle.name, handle.status, handle.config()["cpus"]) == ("box", "running", 1)
    assert type(handle.created_at) is float
    assert [found.name for found in await Sandbox.list_with(labels={"team": "a"})] == ["box"]
    assert await Sandbox.list_with(labels={"team": "b"}) == []
    assert [found.name for found in await Sandbox.list()] == ["box"]
    with pytest.raises(NotSupportedYetError):
        await handle.snapshot("s")


@pytest.mark.parametrize(
    ("operation", "error", "text"),
    [
        (lambda: Sandbox.get("none"), SandboxNotFoundError, "sandbox not found: none"),
        (lambda: Sandbox.get(""), InvalidConfigError, "invalid config: sandbox name is required"),
        (
            lambda: Sandbox.get(5),
            TypeError,
            "argument 'name': 'int' object cannot be converted to 'PyString'",
        ),
        (lambda: Sandbox.remove("none"), SandboxNotFoundError, "sandbox not found: none"),
        (
            lambda: Sandbox.list_with(labels={"a": 1}),
            TypeError,
            "argument 'labels': 'int' object cannot be converted to 'PyString'",
        ),
        (lambda: Sandbox.create("box"), ValueError, "image= or snapshot= is required"),
    ],
)
async def test_what_is_wrong_is_said(context, operation, error, text):
    with pytest.raises(error) as caught:
        await operation()
    assert str(caught.value) == text


def test_a_pull_session_reports_wrong_keywords_without_a_loop(context):
    with pytest.raises(ValueError, match="image= or snapshot= is required"):
        Sandbox.create_with_progress("box")
