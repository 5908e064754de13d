"""``python -m microsandbox.runtime.template_builder``: make a shape's template, and an image's.

    --cpus N --memory MIB                          of which machine
    --image DIGEST --rootfs PATH --upper-size MIB --tmp-size MIB  and of which image, mounted
    --background                                   give way to everybody else

A process of its own, because it starts machines, and outlives the sandbox that noticed the lack. Prints the
key of what it made, or fails with the reason on standard error, which is remembered in the home, too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from microsandbox.errors import MicrosandboxError, TemplateError
from microsandbox.runtime.boot import Handshake
from microsandbox.runtime.boot_failure import BootFailure, LinkLost
from microsandbox.runtime.disks import make_upper, open_locked
from microsandbox.runtime.running_machine import RunningMachine
from microsandbox.store.files import make_private, partial_path, remove_tree, write_atomically
from microsandbox.store.home import Home
from microsandbox.template.shape import ROOT, ImageRoot, Shape
from microsandbox.template.store import RAM, STATE, UPPER, Description, StoredTemplate, TemplateStore
from microsandbox.vmm.host import examine_host
from microsandbox.vmm.kernel import prepare_kernel
from microsandbox.vmm.machine import Disk, Machine, RamFile
from microsandbox.vmm.qemu import launch

#: Seconds for one template. Generous: at the lowest priority on a busy host a boot takes its time.
BUILD_TIMEOUT = 300.0


class Builder(Struct, frozen=True):
    """Makes what is missing of the templates of one home."""

    home: Home
    store: TemplateStore

    async def build(self, shape: Shape, rootfs: Path | None = None) -> StoredTemplate:
        """The template of that shape, made unless it is there. Raises MicrosandboxError."""
        make_private(self.store.root)
        with self.store.lock(shape.key):
            found = self.store.find(shape.key)
            if found is not None:
                return found
            self.store.remove_unfinished(shape.key)
            try:
                if shape.root is None:
                    made = await self._build_bare(shape)
                else:
                    assert rootfs is not None
                    made = await self._build_rooted(shape, shape.root, rootfs)
            except (MicrosandboxError, BootFailure, OSError) as error:
                self.store.record_failure(shape.key, str(error))
                raise TemplateError(f"a template cannot be built: {error}") from error
            self.store.collect(keep=shape.key)
            return made

    async def _build_bare(self, shape: Shape) -> StoredTemplate:
        with _Partial(self.store, shape) as partial:
            async with self._running(shape.machine(ram=partial.make_ram()), shape) as running:
                await Handshake(running.guest).hello()
                await _save(running, partial.path / STATE)
            return partial.publish()

    async def _build_rooted(self, shape: Shape, root: ImageRoot, rootfs: Path) -> StoredTemplate:
        """Booted anew with its disks in place, so that the guest knows their sizes."""
        with _Partial(self.store, shape) as partial:
            make_upper(self.home, partial.path / UPPER, root.upper_size_mib)
            lower = partial.open_disk(rootfs, "rootfs", writable=False)
            upper = partial.open_disk(partial.path / UPPER, "upper", writable=True)
            async with self._running(shape.machine((lower, upper), partial.make_ram()), shape) as running:
                handshake = Handshake(running.guest)
                await handshake.hello()
                await handshake.mount(ROOT, root.tmp_size_mib)
                await _save(running, partial.path / STATE)
            return partial.publish()

    @asynccontextmanager
    async def _running(self, machine: Machine, shape: Shape) -> AsyncIterator[RunningMachine]:
        """A machine that is there for the block. Raises BootFailure."""
        # Counted from the other end than sandboxes are: no builder is any sandbox's user.
        vm = launch(machine, shape.host.qemu, shape.host.jail.kind, identity=-os.getpid())
        running = await RunningMachine.attach(vm, self.store.root / "logs")
        try:
            async with asyncio.timeout(BUILD_TIMEOUT):
                yield running
        except LinkLost as lost:
            failure = await running.why(lost)
            if running.exited.done() and running.exited.result() == -signal.SIGBUS:
                failure = BootFailure(f"no space left on device for the guest's memory in {self.store.root}")
            raise failure from lost
        except TimeoutError:
            raise BootFailure(f"not ready after {BUILD_TIMEOUT:g} s") from None
        finally:
            await running.end()
            vm.close()


async def _save(running: RunningMachine, state: Path) -> None:
    """Stop the machine and keep its devices' state; its RAM is in its file already."""
    await running.monitor.pause()
    write_atomically(state, await running.monitor.save_devices())


class _Partial:
    """A template that is being made: a directory that becomes one, or goes."""

    def __init__(self, store: TemplateStore, shape: Shape) -> None:
        self._store, self._shape = store, shape
        self.path = partial_path(store.root / shape.key)
        self._fds: list[int] = []

    def __enter__(self) -> _Partial:
        self.path.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
        remove_tree(self.path)

    def open_disk(self, path: Path, serial: str, *, writable: bool) -> Disk:
        self._fds.append(open_locked(path, writable=writable))
        return Disk(serial, self._fds[-1], "raw", read_only=not writable)

    def make_ram(self) -> RamFile:
        path = self.path / RAM
        with path.open("xb") as file:
            os.truncate(file.fileno(), self._shape.memory_mib << 20)
        path.chmod(0o666)  # for the jailed QEMU's user; nobody else can enter the directory
        return RamFile(path, shared=True)

    def publish(self) -> StoredTemplate:
        shape, host, root = self._shape, self._shape.host, self._shape.root
        description = Description(
            accelerator=host.accelerator.accelerator.value,
            cpus=shape.cpus,
            memory_mib=shape.memory_mib,
            kernel=host.kernel.version,
            qemu=host.qemu.version,
            image=None if root is None else root.digest,
            upper_size_mib=None if root is None else root.upper_size_mib,
        )
        return self._store.publish(self.path, shape.key, description)


async def _build(builder: Builder, shape: Shape, rootfs: Path | None) -> StoredTemplate:
    """The one asked for first, then the one that its sandboxes need when they are started again."""
    made = await builder.build(shape, rootfs)
    await builder.build(shape.bare)
    return made


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--image")
    parser.add_argument("--rootfs", type=Path)
    parser.add_argument("--upper-size", type=int)
    parser.add_argument("--tmp-size", type=int)
    parser.add_argument("--background", action="store_true")
    given = parser.parse_args()
    if given.background:
        os.nice(19)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is half made is taken away
    try:
        home = Home.open()
        host = examine_host(home, prepare_kernel(home))
        root = None
        if given.image:
            root = ImageRoot.of(given.image, given.rootfs, given.upper_size, given.tmp_size)
        shape = Shape(host, given.cpus, given.memory, root)
        made = asyncio.run(_build(Builder(home, TemplateStore(home)), shape, given.rootfs))
    except (MicrosandboxError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    print(made.key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
