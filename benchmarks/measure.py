"""Timing: repeated, interleaved where two things are compared, reported as medians."""

import statistics
import subprocess
import time


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


#: What was measured above its promise.
broken = []


def promise(what, milliseconds, at_most):
    """Report a figure that has a limit."""
    report(what, f"{milliseconds:.1f} ms", f"at most {at_most} ms")
    if milliseconds > at_most:
        broken.append(what)


def report(what, figure, limit=""):
    print(f"{what:<58} {figure:<28} {limit}", flush=True)


def proportional_set_size(pid):
    """KiB: what a process adds to the machine's memory, shared pages divided among their users."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
