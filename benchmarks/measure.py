"""Timing and telling: repeated, interleaved where things are compared, reported as rows of one table."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

_INSTALLED = Path(sys.executable).with_name("msb")
#: The command as users start it; the module where only the sources are there.
MSB = [str(_INSTALLED)] if _INSTALLED.exists() else [sys.executable, "-m", "microsandbox.cli"]
#: Digits after the point where one is not enough.
_DIGITS = {"x": 2, "%": 2}


def wall(command, **options):
    """Milliseconds a command takes as a whole process."""
    null = subprocess.DEVNULL
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null, **options)
    return 1e3 * (time.perf_counter() - started)


def interleaved(runs, **subjects):
    """Medians of several callables that return milliseconds, run in turn to share the machine's mood."""
    times = {name: [] for name in subjects}
    for _ in range(runs):
        for name, subject in subjects.items():
            times[name].append(subject())
    return {name: statistics.median(values) for name, values in times.items()}


#: What was measured above its promise, or not as it should be.
broken = []


def promise(what, figure, at_most, unit="ms"):
    """Report a figure that has a limit."""
    report(what, f"{figure:.{_DIGITS.get(unit, 1)}f} {unit}", f"at most {at_most} {unit}")
    if figure > at_most:
        broken.append(what)


def expect(what, found, expected):
    """Report something that must be exactly so."""
    report(what, str(found), str(expected))
    if found != expected:
        broken.append(what)


def report(what, figure, limit=""):
    print(f"| {what:<58} | {figure:<28} | {limit} |", flush=True)


def finish():
    """The end of a subject: fails when a promise was broken."""
    if broken:
        sys.exit(f"not as promised: {', '.join(broken)}")
