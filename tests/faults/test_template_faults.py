"""Building templates and going on from them, interrupted: nothing is left, and nothing half made is used."""

import asyncio
import re
import signal
import time

import pytest

from microsandbox import Sandbox
from microsandbox.store.files import PARTIAL_PREFIX
from microsandbox.template.store import RAM, STATE
from tests import audit
from tests.faults.test_killed_processes import end, start_owner
from tests.small_disk import small_disk

pytestmark = [pytest.mark.vm, pytest.mark.fault, pytest.mark.usefixtures("clean")]


def unfinished(store):
    return list(store.root.glob(f"{PARTIAL_PREFIX}*"))


def until(condition, builder):
    """See a builder come to a certain point."""
    deadline = time.monotonic() + 60
    while not condition():
        assert builder.poll() is None, f"it ended before: {builder.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def has_memory(store):
    return any(path.stat().st_blocks * 512 > 20 << 20 for path in store.root.glob(f"{PARTIAL_PREFIX}*/{RAM}"))


MOMENTS = {
    "it holds the lock": lambda store, shape, pid: not store.lock(shape.key).is_free(),
    "the directory is made": lambda store, shape, pid: unfinished(store),
    "the machine runs": lambda store, shape, pid: audit.machines() & set(audit.children_of(pid)),
    "the guest boots": lambda store, shape, pid: has_memory(store),
    "the state is written": lambda store, shape, pid: list(store.root.glob(f"{PARTIAL_PREFIX}*/{STATE}")),
}


@pytest.mark.parametrize("reached", MOMENTS.values(), ids=MOMENTS)
async def test_a_killed_builder_leaves_no_machine_and_no_template(busybox, templates, reached):
    templates.none()
    shape, store = templates.shape(), templates.store
    builder = templates.builder(shape)
    until(lambda: reached(store, shape, builder.pid), builder)
    machines = audit.machines() & set(audit.children_of(builder.pid))
    end(builder)
    builder.stderr.close()
    deadline = time.monotonic() + 5
    while audit.machines() & machines:
        assert time.monotonic() < deadline, "QEMU outlived the builder"
    assert store.find(shape.key) is None
    assert store.all() == []
    assert templates.build() is not None, "what was left is in nobody's way"
    assert unfinished(store) == [], "and has been taken away"


async def test_a_builder_that_is_told_to_end_leaves_nothing_at_all(busybox, templates):
    templates.none()
    builder = templates.builder(templates.shape())
    until(lambda: has_memory(templates.store), builder)
    end(builder, signal.SIGTERM)
    builder.stderr.close()
    assert unfinished(templates.store) == []
    assert templates.keys() == set()
    assert templates.store.failure(templates.shape().key) is None, "that says nothing of the next time"


async def test_two_builders_at_once_build_once(busybox, templates):
    templates.none()
    shape, store = templates.shape(), templates.store
    builders = [templates.builder(shape) for _ in range(2)]
    made = set()
    for builder in builders:
        said, complaint = builder.communicate(timeout=120)
        assert (builder.returncode, said) == (0, f"{shape.key}\n"), complaint
        made.add(store.find(shape.key).created_at)
    assert len(made) == 1
    assert templates.keys() == {shape.key, shape.bare.key}


@pytest.mark.parametrize("size", ["1m", "20m", "60m", "95m"])
async def test_a_full_disk_fails_the_build_and_no_sandbox(busybox, name, session_home, templates, size):
    """Where it strikes depends on the size: the guest's memory, its devices' state, the writable layer."""
    shape, store = templates.shape(), templates.store
    with small_disk(store.root, size):
        builder = templates.builder(shape)
        said, complaint = builder.communicate(timeout=120)
        print(complaint)
        assert (builder.returncode, said) == (1, "")
        assert re.search("(?i)no space left|disk is full", complaint)
        assert "\n" not in complaint.strip()
        assert unfinished(store) == []
        assert templates.keys() == set()
        assert store.failure(shape.key) in complaint
        async with await Sandbox.create(name, image=busybox) as sandbox:
            log = (session_home / "sandboxes" / name / "logs" / "runtime.log").read_text()
            assert "from template" not in log
            assert (await sandbox.exec("/bin/true")).success
        assert audit.builders(session_home) == [], "what has just failed is not tried again at once"


async def test_ten_creates_at_once_without_any_template_leave_one_of_each_kind(busybox, name, templates):
    templates.none()

    async def use(one):
        async with await Sandbox.create(one, image=busybox, memory=512) as sandbox:
            return (await sandbox.exec("hostname")).stdout_text.strip()

    names = [f"{name}-{number}" for number in range(10)]
    assert await asyncio.gather(*map(use, names)) == names
    audit.wait_for_builders(templates.home.root)
    assert templates.keys() == {templates.shape().key, templates.shape().bare.key}
    assert unfinished(templates.store) == []


@pytest.mark.parametrize("delay", [0.0, 0.04, 0.08, 0.12, 0.16, 0.2])
async def test_owner_killed_while_its_sandbox_goes_on_from_a_template(
    busybox, name, session_home, templates, delay
):
    template = templates.build()
    owner = start_owner(name, busybox, "none", until="create")
    time.sleep(delay)
    end(owner)
    audit.wait_clean(session_home, within=5)
    rows = {one.name: one.status for one in await Sandbox.list()}
    assert rows.get(name, "gone") in ("gone", "stopped", "crashed")
    if name in rows:
        await Sandbox.remove(name)
    assert templates.store.find(template.key) == template, "no reason to give the template up"
