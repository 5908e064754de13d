"""Real work in a virtual machine: compute, look around, and stream output as it happens."""

import asyncio
import os
import time

from microsandbox import Sandbox

PROGRAM = """
import os, platform, sys, time

def primes(limit):
    sieve = bytearray([1]) * (limit + 1)
    for n in range(2, int(limit ** 0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(sieve[n * n :: n]))
    return sum(sieve[2:])

print("guest kernel:", platform.release())
processes = [p for p in os.listdir("/proc") if p.isdigit()]
print(f"its PID namespace: {os.readlink('/proc/self/ns/pid')}, {len(processes)} processes, "
      f"PID 1 is {open('/proc/1/comm').read().strip()}", flush=True)
for power in range(3, 7):
    print(f"primes below 10^{power}:", primes(10 ** power), flush=True)
    time.sleep(0.3)
"""


async def main() -> None:
    started = time.perf_counter()
    async with await Sandbox.create("demo", image="microsandbox/demo", replace=True) as sandbox:
        print(f"sandbox up after {time.perf_counter() - started:.2f} s")
        print(f"host kernel: {os.uname().release}, {len(os.listdir('/sys/class/net'))} network interfaces")
        handle = await sandbox.exec_stream("python3", ["-c", PROGRAM])
        async for event in handle:
            if event.event_type in ("stdout", "stderr"):
                for line in event.data.decode().splitlines():
                    print(f"[{time.perf_counter() - started:5.2f} s] {line}")
        await sandbox.fs.write("/root/note.txt", b"written from the host\n")
        print((await sandbox.exec("cat", ["/root/note.txt"])).stdout_text.strip())


asyncio.run(main())
