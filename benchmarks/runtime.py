"""What the runtime itself costs: stopping, following logs, sampling metrics, recording a flood of output."""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

from benchmarks.home import BUSYBOX, load_busybox, temporary_home
from benchmarks.measure import MSB, finish, promise, report
from benchmarks.processes import cpu_seconds, sandboxes_of_this_process
from microsandbox import Sandbox, Stdin

MIB = 1 << 20
#: A MiB of what fills the exec log: nothing, what programs print, and what JSON has no short forms for.
FLOODS = {
    "zeros": "head -c 1048576 /dev/zero",
    "text": "yes 'a line of output, as programs print them' | head -c 1048576",
    "random bytes": "head -c 1048576 /dev/urandom",
}


async def stop(rounds):
    """Stops of idle sandboxes, and cold boots to compare them with."""
    cold = []
    os.environ["MSB_TEMPLATES"] = "off"
    for _ in range(3):
        started = time.perf_counter()
        async with await Sandbox.create("cold", image=BUSYBOX, replace=True):
            cold.append(1e3 * (time.perf_counter() - started))
    del os.environ["MSB_TEMPLATES"]
    stops = []
    for _ in range(rounds):
        sandbox = await Sandbox.create("stopped", image=BUSYBOX, replace=True)
        await sandbox.exec("/bin/true")
        started = time.perf_counter()
        await sandbox.stop()
        stops.append(1e3 * (time.perf_counter() - started))
    median, cold = statistics.median(stops), statistics.median(cold)
    report("stop of an idle sandbox", f"{median:.0f} ms", f"{median / cold:.2f} x a cold boot")


async def follow(rounds):
    """From a line given to `cat` in the guest to the same line out of `msb logs --follow`, and out of exec.

    The difference is what the log adds: the guest's write and its way to the host are in both.
    """
    sandbox = await Sandbox.create("followed", image=BUSYBOX)
    reader = await asyncio.create_subprocess_exec(
        *MSB, "logs", "--follow", "followed", stdout=asyncio.subprocess.PIPE
    )
    command = await sandbox.exec_stream("cat", stdin=Stdin.pipe())
    sink, there, here = command.take_stdin(), [], []
    for number in range(rounds + 1):
        started = time.perf_counter()
        await sink.write(b"line %d\n" % number)
        async for event in command:
            if event.event_type == "stdout":
                break
        said = time.perf_counter()
        while f"line {number}\n".encode() not in await reader.stdout.readline():
            pass
        if number:  # the first waits for the reader's interpreter
            there.append(1e3 * (said - started))
            here.append(1e3 * (time.perf_counter() - started))
    reader.terminate()
    await reader.wait()
    await sandbox.kill()
    report("a line into the guest and out of exec", f"{statistics.median(there):.1f} ms")
    report(
        "... and out of msb logs --follow", f"{statistics.median(here):.1f} ms", f"most {max(here):.1f} ms"
    )


def sampling(home, count, settle, seconds):
    """CPU of many idle supervisors that sample once a second, against as many that do not.

    Each in a process of its own: it reads the configuration once.
    """
    used = []
    for interval in (0, 1000):
        defaults = {"sandbox_defaults": {"metrics_sample_interval_ms": interval}}
        (home / "config.json").write_text(json.dumps(defaults))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            used.append(process.submit(supervisors_at_rest, count, settle, seconds).result())
    idle, sampled = used
    report(f"{count} idle supervisors that do not sample", f"{idle:.1f} % of a core")
    promise(f"{count} that sample once a second: more than that", sampled - idle, 10, "%")


def supervisors_at_rest(count, settle, seconds):
    """Per cent of a core that the supervisors of so many sandboxes use together."""

    async def rest():
        names = [f"s{number}" for number in range(count)]
        sandboxes = [await Sandbox.create(name, image=BUSYBOX, memory=256) for name in names]
        await asyncio.sleep(settle)
        supervisors = [sandbox.supervisor for sandbox in sandboxes_of_this_process()]
        assert len(supervisors) == count
        before = cpu_seconds(*supervisors)
        await asyncio.sleep(seconds)
        used = 100 * (cpu_seconds(*supervisors) - before) / seconds
        await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))
        for name in names:
            await Sandbox.remove(name)
        return used

    return asyncio.run(rest())


async def flood(mebibytes):
    """How fast output arrives that is recorded, by what it consists of."""
    async with await Sandbox.create("flooded", image=BUSYBOX) as sandbox:
        for what, script in FLOODS.items():
            await sandbox.shell(f"{script} > /tmp/flood")
            started, received = time.perf_counter(), 0
            flood = f"for i in $(seq {mebibytes}); do cat /tmp/flood; done"
            async for event in await sandbox.exec_stream("sh", ["-c", flood]):
                if event.event_type == "stdout":
                    received += len(event.data)
            elapsed = time.perf_counter() - started
            assert received == mebibytes * MIB, received
            report(f"a flood of {what}, recorded", f"{mebibytes / elapsed:.0f} MiB/s")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime")
    parser.add_argument("--rounds", type=int, default=21, help="stops, and lines followed")
    parser.add_argument("--count", type=int, default=50, help="sandboxes that sample at once")
    parser.add_argument("--settle", type=float, default=10, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=30, help="how long CPU time is looked at")
    parser.add_argument("--flood", type=int, default=64, metavar="MIB")
    options = parser.parse_args()
    with temporary_home() as home, asyncio.Runner() as runner:
        runner.run(load_busybox(home, 256))
        runner.run(load_busybox(home))
        runner.run(stop(options.rounds))
        runner.run(follow(options.rounds))
        runner.run(flood(options.flood))
        sampling(home, options.count, options.settle, options.seconds)


if __name__ == "__main__":
    main()
    finish()
