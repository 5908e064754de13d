"""An owner to be killed: ``python owner.py NAME IMAGE STEP``; says on stdout when it has come to STEP."""

import asyncio
import sys

from microsandbox import Sandbox, SandboxPool


def say(word):
    print(word, flush=True)


async def keep_a_pool(name, image):
    pool = SandboxPool(2, name_prefix=name, image=image)
    await pool.start()
    say("create")
    async with asyncio.timeout(60):
        while pool.ready < 2:
            await asyncio.sleep(0.01)
    say("pool")
    await asyncio.sleep(1000)


async def main(name, image, step):
    if step == "pool":
        await keep_a_pool(name, image)
    say("create")
    sandbox = await Sandbox.create(name, image=image, detached=step == "detached")
    if step == "exec":
        handle = await sandbox.exec_stream("sh", ["-c", "echo up; cat /dev/zero"])
        async for event in handle:
            if event.event_type == "stdout" and event.data == b"up\n":
                say("exec")
    if step == "stop":
        await sandbox.shell("trap '' TERM; sleep 1000 >/dev/null 2>&1 &")
        say("stop")
        await sandbox.stop()
    if step == "pause":
        await sandbox.fs.write("/root/kept", b"kept")
        await sandbox.pause()
    if step == "detached":
        await sandbox.detach()
    say(step)
    await asyncio.sleep(1000)


asyncio.run(main(*sys.argv[1:]))
