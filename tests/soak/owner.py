"""One owner: a program that lives with its sandboxes at random for some seconds.

``python -m tests.soak.owner SEED SECONDS IMAGE PREFIX TOLERANT`` says on stdout, in JSON, what it did. Where
faults are about (TOLERANT is 1) operations may fail, with errors that are ours or the host's; otherwise none
may. None may ever hang, or fail with an error that only a defect can raise.
"""

import asyncio
import collections
import errno
import json
import random
import sys
import time
import traceback

from microsandbox import Sandbox, SandboxPool, all_sandbox_metrics
from microsandbox.errors import MicrosandboxError
from microsandbox.interpreter import module_command, module_environment

#: Seconds within which any operation has to end, well or badly.
PATIENCE = 90
#: Errors of the host that an operation may pass on.
HOST_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ESRCH, errno.ECONNREFUSED, errno.EAGAIN}
LANES = 2


class Lane:
    """One sandbox after the other, each through some of its possible lives."""

    def __init__(self, rng, image, prefix, tolerant):
        self.rng, self.image, self.prefix, self.tolerant = rng, image, prefix, tolerant
        self.done, self.errors = collections.Counter(), collections.Counter()
        self.sandbox = None
        self.names = (f"{prefix}-{number}" for number in range(1, 1000))
        self.name = ""
        #: What was written to the file that has to survive; the last is there after an orderly stop.
        self.written = []

    async def live(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            operation = self.create if self.sandbox is None else self.choose()
            try:
                async with asyncio.timeout(PATIENCE):
                    await operation()
                self.done[operation.__name__] += 1
            except TimeoutError:
                raise AssertionError(f"{operation.__name__} of {self.name} hangs") from None
            except (MicrosandboxError, OSError) as error:
                if not self.tolerant or (
                    not isinstance(error, MicrosandboxError) and error.errno not in HOST_ERRORS
                ):
                    raise
                self.errors[f"{operation.__name__}: {_kind(error)}"] += 1
                await self.give_up()

    def choose(self):
        common = [self.execute, self.write, self.read, self.stop_and_start, self.pause_and_resume]
        rare = [
            self.kill,
            self.remove,
            self.hand_over,
            self.replace,
            self.look,
            self.cancel,
            self.command_line,
        ]
        return self.rng.choice(common * 2 + rare)

    async def give_up(self):
        """After a failure: take the sandbox away if that can be done, and begin with another."""
        sandbox, self.sandbox = self.sandbox, None
        try:
            async with asyncio.timeout(PATIENCE):
                if sandbox is not None:
                    await sandbox.kill()
                await Sandbox.remove(self.name)
        except (MicrosandboxError, OSError):
            return  # the auditor sees whether that was right

    # operations

    async def create(self):
        self.name, self.written = next(self.names), []
        detached = self.rng.random() < 0.3
        self.sandbox = await self._new(detached=detached)

    async def _new(self, **options):
        return await Sandbox.create(self.name, image=self.image, labels={"soak": self.prefix}, **options)

    async def execute(self):
        code = self.rng.randrange(3)
        output = await self.sandbox.exec("sh", ["-c", f"echo out; echo err >&2; exit {code}"])
        if self.tolerant and output.exit_code == -1:
            return  # its guest was powered off under it
        found = (output.stdout_text, output.stderr_text, output.exit_code)
        assert found == ("out\n", "err\n", code), found

    async def write(self):
        content = b"%d" % self.rng.getrandbits(64)
        self.written.append(content)
        await self.sandbox.fs.write("/root/kept", content)

    async def read(self):
        if self.written:
            content = await self.sandbox.fs.read("/root/kept")
            assert content == self.written[-1], (content, self.written)

    async def stop_and_start(self):
        await self.sandbox.stop()
        self.sandbox = None
        self.sandbox = await Sandbox.start(self.name)
        if not self.tolerant:  # where machines are killed, the last writes may be lost
            await self.read()
        self.written.clear()

    async def pause_and_resume(self):
        await self.sandbox.pause()
        await asyncio.sleep(self.rng.random() / 5)
        await self.sandbox.resume()
        await self.execute()

    async def kill(self):
        await self.sandbox.kill()
        await self.remove()

    async def remove(self):
        await self.sandbox.stop()
        self.sandbox = None
        await Sandbox.remove(self.name)

    async def hand_over(self):
        """Detach, and come back by name."""
        await self.sandbox.detach()
        self.sandbox = None
        self.sandbox = await (await Sandbox.get(self.name)).connect()

    async def replace(self):
        self.sandbox = await self._new(replace=True)
        self.written.clear()

    async def look(self):
        handle = await Sandbox.get(self.name)
        await handle.logs(tail=10)
        await all_sandbox_metrics()
        assert handle.name in {one.name for one in await Sandbox.list_with(labels={"soak": self.prefix})}

    async def cancel(self):
        """Change one's mind in the middle of a create."""
        creating = asyncio.ensure_future(Sandbox.create(f"{self.name}-cancelled", image=self.image))
        await asyncio.sleep(self.rng.random() / 2)
        creating.cancel()
        await asyncio.wait((creating,))
        if not creating.cancelled() and creating.exception() is None:
            await creating.result().kill()
        elif not creating.cancelled():
            raise creating.exception()
        if any(one.name == f"{self.name}-cancelled" for one in await Sandbox.list()):
            await Sandbox.remove(f"{self.name}-cancelled")

    async def command_line(self):
        """A throw-away sandbox of `msb run`, which may be interrupted."""
        argv = module_command(
            "microsandbox.cli", "run", "--quiet", self.image, "--", "sh", "-c", "sleep 0.2; echo out"
        )
        child = await asyncio.create_subprocess_exec(
            *argv, env=module_environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        interrupted = self.rng.random() < 0.3
        if interrupted:
            await asyncio.sleep(self.rng.random() / 2)
            if child.returncode is None:
                child.terminate()
        output, complaint = await child.communicate()
        if not interrupted and not self.tolerant:
            assert (child.returncode, output) == (0, b"out\n"), complaint

    async def leave(self):
        """The end of this program: some sandboxes are stopped, some let go, some just left behind."""
        if self.sandbox is None:
            return
        end = self.rng.choice([self.remove, self.sandbox.detach, self.kill, None])
        if end is not None:
            await end()


def _kind(error):
    """The class says it all, but for errors that have none of their own."""
    return str(error) if type(error) is MicrosandboxError else type(error).__name__


async def borrow(rng, image, prefix, tolerant):
    """Some sandboxes out of a pool."""
    try:
        async with (
            asyncio.timeout(PATIENCE),
            SandboxPool(2, name_prefix=f"{prefix}-pool", image=image) as pool,
        ):
            for _ in range(rng.randrange(4)):
                async with await pool.acquire() as sandbox:
                    assert (await sandbox.exec("true")).success
    except (MicrosandboxError, OSError):
        if not tolerant:
            raise


async def main(seed, seconds, image, prefix, tolerant):
    rng = random.Random(seed)
    lanes = [Lane(random.Random(rng.random()), image, f"{prefix}{lane}", tolerant) for lane in range(LANES)]
    work = [lane.live(seconds) for lane in lanes]
    if rng.random() < 0.3:
        work.append(borrow(rng, image, prefix, tolerant))
    await asyncio.gather(*work)
    for lane in lanes:
        try:
            await lane.leave()
        except (MicrosandboxError, OSError):
            if not tolerant:
                raise
    done = sum((lane.done for lane in lanes), collections.Counter())
    errors = sum((lane.errors for lane in lanes), collections.Counter())
    print(json.dumps({"done": done, "errors": errors}), flush=True)


if __name__ == "__main__":
    seed, seconds, image, prefix, tolerant = sys.argv[1:]
    try:
        asyncio.run(main(seed, float(seconds), image, prefix, tolerant == "1"))
    except BaseException:
        traceback.print_exc()
        sys.exit(3)
