"""What is asked of a sandbox by name while its owner still prepares it, or when it has ended."""

import pytest

from microsandbox import MicrosandboxError
from microsandbox.sandbox import lifecycle
from microsandbox.sandbox.stored_config import dump_config
from microsandbox.store.sandboxes import Status


@pytest.fixture
def prepared(context, config):
    """A sandbox that this process, its owner, is about to start."""
    return context.sandboxes.create("box", dump_config(config), {}, None)


@pytest.mark.parametrize(
    ("ask", "verb"), [(lifecycle.request_kill, "kill"), (lifecycle.request_drain, "drain")]
)
def test_there_is_nobody_to_signal_yet(context, prepared, ask, verb):
    text = rf"^runtime error: cannot {verb} sandbox 'box': sandbox state is unavailable$"
    with pytest.raises(MicrosandboxError, match=text):
        ask(context, "box")
    assert context.sandboxes.is_live(prepared)
    assert not context.sandboxes.was_given_up(prepared), "nothing has been done to it"


@pytest.mark.parametrize("timeout", [None, 0])
async def test_stopping_it_gives_it_up_and_its_owner_is_not_signalled(context, prepared, timeout):
    await lifecycle.stop(context, "box", timeout)
    assert context.sandboxes.get("box").status is Status.STOPPED
    assert context.sandboxes.was_given_up(prepared)
    assert not context.sandboxes.take_over(prepared.run_id)


async def test_what_has_ended_is_not_asked_anything(context, prepared):
    await lifecycle.kill(context, "box", None)
    lifecycle.request_kill(context, "box")
    lifecycle.request_drain(context, "box")
    await lifecycle.request_stop(context, "box")
    await lifecycle.stop(context, "box", None)
    observed = await lifecycle.wait_until_stopped(context, "box")
    assert (observed.name, observed.status) == ("box", Status.STOPPED)


async def test_replacing_takes_what_is_being_prepared(context, prepared):
    directory = context.home.sandbox("box").directory
    directory.mkdir(parents=True)
    await lifecycle.make_way(context, "box", 10)
    assert context.sandboxes.find("box") is None
    assert not list(directory.parent.iterdir())
    assert context.sandboxes.was_given_up(prepared)


async def test_files_without_a_row_are_in_nobodys_way(context, config):
    directory = context.home.sandbox("box").directory
    directory.mkdir(parents=True)
    await lifecycle.make_way(context, "box", 10)
    assert not directory.exists()
