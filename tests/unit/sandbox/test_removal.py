"""Removing a sandbox takes along what others did not get to delete."""

from microsandbox.sandbox import lifecycle
from microsandbox.sandbox.context import Context
from microsandbox.store.files import partial_path
from microsandbox.store.sandboxes import Reason, Status


async def test_what_somebody_could_not_delete_goes_with_the_next(monkeypatch, tmp_path):
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    context = Context.current()
    directory = context.home.sandbox("box").directory
    row = context.sandboxes.create("box", "{}", {}, None, lambda: directory.mkdir(parents=True))
    context.sandboxes.end_run(row.id, row.run_id, Status.STOPPED, Reason.COMPLETED)
    (partial_path(directory.with_name("other")) / "logs").mkdir(parents=True)
    await lifecycle.remove(context, "box")
    assert list(context.home.sandboxes.iterdir()) == []
