"""Several processes want different things of one name at once: one gets it, the others are told why not."""

import asyncio
import json
import random
import subprocess
import sys

import pytest

from microsandbox import Sandbox, SandboxNotFoundError

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]

RACER = """
import asyncio, json, sys
from microsandbox import MicrosandboxError, Sandbox

async def act(name, image, verb):
    if verb in ("create", "replace"):
        grace = 0 if verb == "replace" else None
        sandbox = await Sandbox.create(name, image=image, detached=True, replace_with_timeout=grace)
        await sandbox.detach()
    elif verb == "start":
        await (await Sandbox.start(name, detached=True)).detach()
    elif verb == "remove":
        await Sandbox.remove(name)
    else:
        await getattr(await Sandbox.get(name), verb)()

async def main(name, image, *verbs):
    for verb in verbs:
        try:
            await act(name, image, verb)
            outcome = "won"
        except MicrosandboxError as error:
            outcome = str(error)
        print(json.dumps([verb, outcome]), flush=True)

sys.stdin.read()
asyncio.run(main(*sys.argv[1:]))
"""

TAKEN = (
    "sandbox already exists: sandbox '{}' already exists; "
    "remove it, start the stopped sandbox, or recreate with .replace()"
)
RUNNING = "sandbox still running: cannot start sandbox '{}': already running"
IN_USE = "sandbox still running: cannot remove sandbox '{}': still running"
NOT_FOUND = "sandbox not found: {}"
#: Of one whose creation was ended before it had its disk.
UNFINISHED = "sandbox state missing for '{}'"
GIVEN_UP = 'failed to start "{}": it was stopped, replaced or removed by somebody else meanwhile'

ALLOWED = {
    "create": {TAKEN, GIVEN_UP},
    "replace": {TAKEN, GIVEN_UP},
    "start": {RUNNING, NOT_FOUND, GIVEN_UP, UNFINISHED},
    "remove": {NOT_FOUND, IN_USE},
    "stop": {NOT_FOUND},
    "kill": {NOT_FOUND},
}


def race(name, image, *racers):
    """Have processes do what they are to, all from one moment on; what each came to, in the order of them."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, name, image, *verbs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for verbs in racers
    ]  # fmt: skip
    try:
        for process in processes:
            process.stdin.close()
        outcomes = []
        for process, verbs in zip(processes, racers, strict=True):
            lines = process.stdout.read().splitlines()
            assert process.wait(timeout=120) == 0, "an error that is none of ours"
            assert len(lines) == len(verbs)
            outcomes.append([tuple(json.loads(line)) for line in lines])
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    for verb, outcome in (one for racer in outcomes for one in racer):
        allowed = {text.format(name) for text in ALLOWED[verb]}
        assert outcome == "won" or outcome.partition(": /")[0] in allowed, f"{verb}: {outcome}"
    return outcomes


def words(outcomes):
    return sorted(outcome for racer in outcomes for _, outcome in racer)


async def works(name):
    """The sandbox of that name is the one that answers, and its files are its own."""
    sandbox = await (await Sandbox.get(name)).connect()
    assert (await sandbox.exec("hostname")).stdout_text == f"{name}\n"
    await sandbox.fs.write("/root/mine", b"mine")
    await sandbox.stop()
    async with await Sandbox.start(name) as again:
        assert await again.fs.read("/root/mine") == b"mine"


async def gone(name, home):
    with pytest.raises(SandboxNotFoundError):
        await Sandbox.get(name)
    assert not [path.name for path in (home / "sandboxes").iterdir() if name in path.name]


async def test_of_several_creators_one_wins(busybox, name, session_home):
    outcomes = race(name, busybox, *[["create"]] * 5)
    assert words(outcomes) == sorted([*[TAKEN.format(name)] * 4, "won"])
    await works(name)
    await gone(name, session_home)


async def test_of_several_starters_one_wins(busybox, name, session_home):
    await (await Sandbox.create(name, image=busybox)).stop()
    outcomes = race(name, busybox, *[["start"]] * 5)
    assert words(outcomes) == sorted([*[RUNNING.format(name)] * 4, "won"])
    await works(name)
    await gone(name, session_home)


async def test_of_several_removers_one_wins(busybox, name, session_home):
    await (await Sandbox.create(name, image=busybox)).stop()
    outcomes = race(name, busybox, *[["remove"]] * 5)
    assert words(outcomes) == sorted([*[NOT_FOUND.format(name)] * 4, "won"])
    await gone(name, session_home)


async def test_everybody_who_stops_or_kills_sees_it_stopped(busybox, name):
    await (await Sandbox.create(name, image=busybox, detached=True)).detach()
    outcomes = race(name, busybox, ["stop"], ["kill"], ["stop"], ["kill"])
    assert words(outcomes) == ["won"] * 4
    handle = await Sandbox.get(name)
    assert handle.status == "stopped"
    await handle.remove()


async def test_a_start_and_a_removal_exclude_each_other(busybox, name):
    await (await Sandbox.create(name, image=busybox)).stop()
    [[(_, started)], [(_, removed)]] = race(name, busybox, ["start"], ["remove"])
    assert (started, removed) in [("won", IN_USE.format(name)), (NOT_FOUND.format(name), "won")]
    if started == "won":
        await works(name)


async def test_of_several_that_replace_one_is_left_and_it_is_whole(busybox, name, session_home):
    await (await Sandbox.create(name, image=busybox, detached=True)).detach()
    for _ in range(3):
        outcomes = race(name, busybox, *[["replace"]] * 4)
        assert "won" in words(outcomes), "those who lose, lose to somebody"
    await works(name)
    await gone(name, session_home)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_several_processes_do_the_name_leads_to_one_sandbox_or_none(
    busybox, name, session_home, seed
):
    dice = random.Random(seed)
    verbs = ["create", "replace", "start", "stop", "kill", "remove"]
    race(name, busybox, *([dice.choice(verbs) for _ in range(8)] for _ in range(5)))
    async with await Sandbox.create(name, image=busybox, replace=True):
        pass
    await (await Sandbox.create(name, image=busybox, detached=True)).detach()
    await works(name)
    await gone(name, session_home)


async def test_who_waits_is_told_of_the_run_it_waited_for(busybox, name):
    """The result is that of the run, not of the sandbox that has its name by then."""
    old = await Sandbox.create(name, image=busybox)
    handle = await Sandbox.get(name)
    waiting = [asyncio.ensure_future(one.wait_until_stopped()) for one in (old, handle)]
    async with await Sandbox.create(name, image=busybox, replace_with_timeout=0) as new:
        owned, by_name = await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert (owned.status, owned.signal, owned.exit_code) == ("stopped", 9, None)
        assert (by_name.status, by_name.signal, by_name.exit_code) == ("stopped", None, None)
        assert owned.name == by_name.name == name
        assert (await new.exec("true")).success


async def test_the_end_of_a_block_removes_its_own_sandbox_only(busybox, name):
    async with await Sandbox.create(name, image=busybox):
        await (await Sandbox.create(name, image=busybox, replace_with_timeout=0)).stop()
    handle = await Sandbox.get(name)
    assert handle.status == "stopped", "it belongs to who replaced the first"
    await handle.remove()
