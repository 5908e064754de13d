"""A round: owners at work, a fault, the end of everything, and the auditor."""

import asyncio
import collections
import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from microsandbox import Sandbox
from microsandbox.errors import SandboxNotFoundError
from microsandbox.interpreter import module_command, module_environment
from tests import audit
from tests.soak.faults import FAKETIME, FAULTS, Fault, Scene
from tests.soak.owner import PATIENCE
from tests.templates import Templates

OWNERS = 3


class Leak(AssertionError):
    """Something that a round left behind, or did wrong."""


@dataclass
class Tally:
    """What was done so far."""

    rounds: collections.Counter = field(default_factory=collections.Counter)
    done: collections.Counter = field(default_factory=collections.Counter)
    errors: collections.Counter = field(default_factory=collections.Counter)


def fault_of(seed, number):
    """Each fault comes once in as many rounds as there are faults, in an order of the seed."""
    turn, place = divmod(number, len(FAULTS))
    order = list(FAULTS)
    random.Random(f"{seed}/turn {turn}").shuffle(order)
    return order[place]


async def play(seed, number, home, image, seconds, tally):
    """Play one round. Raises Leak."""
    fault = fault_of(seed, number)
    scene = Scene(home, random.Random(f"{seed}/{number}"))
    before = _belongings(home)
    scene.owners = [
        _start_owner(scene, fault, f"r{number}{letter}-", image, seconds) for letter in "abcdef"[:OWNERS]
    ]
    try:
        await asyncio.gather(_strike(scene, fault, seconds), *map(_ended, scene.owners))
        for owner in scene.owners:
            _judge(owner, fault, tally)
    finally:
        for owner in scene.owners:
            owner.kill()
            owner.communicate()
    await _end_the_rest(scene)
    await asyncio.to_thread(_works, image)
    await asyncio.to_thread(_audit, home, before, image)
    tally.rounds[fault.name] += 1


def _start_owner(scene, fault: Fault, prefix, image, seconds):
    environment = dict(os.environ)
    scene.clock.write_text("+0\n")
    if fault.name == "clock_jumps" and FAKETIME is not None:
        environment |= {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(scene.clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    argv = [sys.executable, "-m", "tests.soak.owner", str(scene.rng.random()), str(seconds), image, prefix]
    return subprocess.Popen(
        [*argv, str(int(not fault.harmless))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def _strike(scene, fault, seconds):
    moments = sorted(scene.rng.uniform(0.3, seconds) for _ in range(fault.hits))
    begun = time.monotonic()
    for moment in moments:
        await asyncio.sleep(begun + moment - time.monotonic())
        await fault.strike(scene)


async def _ended(owner):
    """Wait for an owner; it has a hang of its own to report before we lose patience."""
    pidfd = os.pidfd_open(owner.pid)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(2 * PATIENCE + 60):
            await ended.wait()
    except TimeoutError:
        raise Leak("an owner does not end") from None
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


def _judge(owner, fault, tally):
    said, complaint = owner.communicate()
    if owner.returncode == 0:
        report = json.loads(said)
        tally.done.update(report["done"])
        tally.errors.update(report["errors"])
    elif owner.returncode > 0 and not (fault.name == "descriptors_exhausted" and "Errno 24" in complaint):
        raise Leak(f"an owner failed:\n{complaint}")
    elif owner.returncode < 0 and fault.name not in ("owner_killed", "owner_terminated"):
        raise Leak(f"an owner died of signal {-owner.returncode}:\n{complaint}")


async def _end_the_rest(scene):
    """End what was let go, by name, and remove all."""
    for handle in await Sandbox.list():
        with suppress(SandboxNotFoundError):
            if handle.status in ("running", "paused", "draining"):
                await (handle.stop if scene.rng.random() < 0.5 else handle.kill)()
            await handle.remove()


def _works(image):
    """After whatever has happened, the next one does what it always did."""
    argv = module_command("microsandbox.cli", "run", "--quiet", image, "--", "echo", "works")
    done = subprocess.run(argv, env=module_environment(), capture_output=True, text=True, timeout=PATIENCE)
    if (done.returncode, done.stdout) != (0, "works\n"):
        raise Leak(f"nothing works any more: {done.stdout}{done.stderr}")


def _belongings(home):
    """What must be the same after a round as before it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "descriptors": _descriptors(home),
        "sandbox directories": sorted(path.name for path in (home / "sandboxes").iterdir()),
        "mounts": [line for line in mounts if str(home) in line],
        "network devices": sorted(os.listdir("/sys/class/net")),
        "children": sorted(audit.children_of(os.getpid())),
    }


def _descriptors(home):
    """What is open here, but for the catalogue: each thread that has asked it keeps a connection."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(path for path in found if not path.startswith(f"{home}/db/"))


def _audit(home, before, image):
    try:
        audit.wait_for_builders(home)
        Templates.of(image).build()  # what killed builders left goes with the next build of that shape
        audit.wait_clean(home, within=20)
    except AssertionError as error:
        raise Leak(str(error)) from None
    if left := audit.machines(home):
        raise Leak(f"machines outlived their sandboxes: {left}")
    after = _belongings(home)
    if differences := [
        f"{key}: {before[key]} became {after[key]}" for key in after if after[key] != before[key]
    ]:
        raise Leak("; ".join(differences))
