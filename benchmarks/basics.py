"""The command, an image load, and one sandbox from cold boot to stop: time, throughput, memory."""

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.home import temporary_home
from benchmarks.jail import jail_cost
from benchmarks.measure import MSB, finish, interleaved, promise, report, wall
from benchmarks.processes import memory, sandboxes_of_this_process
from microsandbox import Image, Sandbox
from microsandbox._guest import agent_binary

DEMO = Path("build/demo.tar")


def start_up():
    python = sys.executable
    medians = interleaved(
        15,
        bare=lambda: wall([python, "-c", "pass"]),
        package=lambda: wall([python, "-c", "import microsandbox"]),
        version=lambda: wall([*MSB, "--version"]),
        ls=lambda: wall([*MSB, "ls"]),
    )
    bare = medians.pop("bare")
    report("python -c pass", f"{bare:.0f} ms")
    promise("import microsandbox, above that", medians["package"] - bare, 60)
    promise("msb --version, above that", medians["version"] - bare, 150)
    promise("msb ls, above that", medians["ls"] - bare, 150)


def image_load():
    """Loading the demo image against skopeo copy + umoci unpack of the same archive."""

    def ours():
        with tempfile.TemporaryDirectory() as home:
            return wall([*MSB, "load", "--quiet", "--input", DEMO], env={**os.environ, "MSB_HOME": home})

    def theirs():
        with tempfile.TemporaryDirectory() as directory:
            layout = f"{directory}/layout:demo"
            copying = wall(["skopeo", "copy", "--quiet", f"oci-archive:{DEMO}", f"oci:{layout}"])
            rootless = [] if os.geteuid() == 0 else ["--rootless"]
            return copying + wall(["umoci", "unpack", *rootless, "--image", layout, f"{directory}/bundle"])

    medians = interleaved(3, ours=ours, theirs=theirs)
    ratio = medians["ours"] / medians["theirs"]
    report(
        f"msb load of the demo image ({DEMO.stat().st_size >> 20} MiB)",
        f"{medians['ours'] / 1e3:.2f} s",
        f"{ratio:.2f} x skopeo copy + umoci unpack ({medians['theirs'] / 1e3:.2f} s)",
    )


async def cold_start(image):
    async def create():
        started = time.perf_counter()
        async with await Sandbox.create("bench-cold", image=image, replace=True) as sandbox:
            created = time.perf_counter()
            assert (await sandbox.exec("/bin/echo", ["x"])).stdout_bytes == b"x\n"
            return created - started, time.perf_counter() - started

    times = [await create() for _ in range(5)]
    created, output = (sorted(column)[2] for column in zip(*times, strict=True))
    report("Sandbox.create(), cold", f"{created:.2f} s")
    report("create to first output, cold", f"{output:.2f} s")


async def running(image, directory):
    async with await Sandbox.create("bench", image=image, replace=True) as sandbox:
        times = []
        for _ in range(50):
            started = time.perf_counter()
            await sandbox.exec("/bin/true")
            times.append(1e3 * (time.perf_counter() - started))
        times.sort()
        report("exec round trip of /bin/true", f"{times[25]:.1f} ms", f"90 %: {times[45]:.1f} ms")
        await throughput(sandbox, directory)
        status = await sandbox.fs.read_text("/proc/1/status")
        resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
        report("agentd's resident memory", f"{resident} KiB")
        processes()
        started = time.perf_counter()
        await sandbox.stop()
        report("stop", f"{1e3 * (time.perf_counter() - started):.0f} ms")


async def throughput(sandbox, directory):
    data = random.Random(0).randbytes(64 << 20)
    source, back = directory / "source", directory / "back"
    source.write_bytes(data)
    started = time.perf_counter()
    await sandbox.fs.copy_from_host(str(source), "/root/big")
    written = time.perf_counter()
    await sandbox.fs.copy_to_host("/root/big", str(back))
    read = time.perf_counter()
    assert back.read_bytes() == data, "64 MiB came back different"
    report("64 MiB host to guest", f"{64 / (written - started):.0f} MiB/s")
    report("64 MiB guest to host, byte-identical", f"{64 / (read - written):.0f} MiB/s")


def processes():
    [sandbox] = sandboxes_of_this_process()
    status = Path(f"/proc/{sandbox.supervisor}/status").read_text()
    kib = int(status.split("VmRSS:")[1].split()[0])
    report("supervisor's resident memory", f"{kib / 1024:.1f} MiB", "target below 25 MiB")
    report("supervisor's proportional set", f"{memory(sandbox.supervisor):.1f} MiB")
    report("QEMU's proportional set", f"{memory(*sandbox.machine):.1f} MiB")


def main():
    if not DEMO.exists() or not shutil.which("umoci"):
        sys.exit("run `make bench`: the demo image and the tools to compare with are needed")
    # Cold boots are meant here, and no template that is made beside them.
    os.environ["MSB_TEMPLATES"] = "off"
    start_up()
    report("agentd's size", f"{agent_binary().stat().st_size / 1024:.0f} KiB", "below 400 KiB")
    promise("jail: QEMU's first word inside, more than outside", jail_cost(), 15)
    image_load()
    with temporary_home() as home:
        [image] = asyncio.run(Image.load(DEMO))
        asyncio.run(cold_start(image))
        asyncio.run(running(image, home))


if __name__ == "__main__":
    main()
    finish()
