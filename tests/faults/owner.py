"""An owner to be killed: ``python owner.py NAME IMAGE STEP``; says on stdout when it has come to STEP."""

import asyncio
import sys

from microsandbox import Sandbox


def say(word):
    print(word, flush=True)


async def main(name, image, step):
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
