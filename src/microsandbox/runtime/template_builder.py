"""``python -m microsandbox.runtime.template_builder``: make a shape's template, and an image's.

    --cpus N --memory MIB                          of which machine
    --image DIGEST --rootfs PATH --upper-size MIB  and of which image, mounted
    --background                                   give way to everybody else

A process of its own, because it starts machines, and outlives the sandbox that noticed the lack. The machine
for an image goes on from the shape's template. Prints the key of what it made, or fails with the reason on
standard error; the template's place in the home keeps it too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from microsandbox.errors import MicrosandboxError, TemplateError
from microsandbox.runtime.boot import BootFailure, Handshake, LinkLost
from microsandbox.runtime.disks import make_upper, open_locked
from microsandbox.runtime.running_machine import RunningMachine
from microsandbox.store.files import copy_sparse, make_private, partial_path, remove_tree, write_atomically
from microsandbox.store.home import Home
from microsandbox.template.shape import ImageRoot, Shape
from microsandbox.template.store import RAM, STATE, UPPER, Description, StoredTemplate, TemplateStore
from microsandbox.vmm.host import examine_host
from microsandbox.vmm.kernel import prepare_kernel
from microsandbox.vmm.machine import Disk, Machine, RamFile
from microsandbox.vmm.qemu import launch

#: Seconds for one template. Generous: at the lowest priority on a busy host a boot takes its time.
BUILD_TIMEOUT = 300.0
_FAULTS_OF_IMAGES = frozenset({"mount", "image"})
#: Where a machine is that says hello: the root disks are /dev/vda and /dev/vdb, see ROOT_SLOTS.
ROOT = {"lower": "/dev/vda", "lower_fstype": "squashfs", "upper": "/dev/vdb", "upper_fstype": "ext4"}


@dataclass(frozen=True)
class Builder:
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
            with (partial.path / RAM).open("xb") as ram:
                os.truncate(ram.fileno(), shape.memory_mib << 20)
            async with self._running(partial.machine(shape), shape) as running:
                await Handshake(running.guest).hello()
                await _save(running, partial.path / STATE)
            return partial.publish()

    async def _build_rooted(self, shape: Shape, root: ImageRoot, rootfs: Path) -> StoredTemplate:
        try:
            return await self._mount(await self.build(shape.bare), shape, root, rootfs)
        except BootFailure as failure:
            if failure.stage in _FAULTS_OF_IMAGES:
                raise
        # The shape's template does not go on, whatever its manifest says.
        self.store.discard(shape.bare.key)
        return await self._mount(await self.build(shape.bare), shape, root, rootfs)

    async def _mount(
        self, base: StoredTemplate, shape: Shape, root: ImageRoot, rootfs: Path
    ) -> StoredTemplate:
        """Go on from the template without an image, and keep what it is with the image mounted."""
        with _Partial(self.store, shape) as partial:
            copy_sparse(base.ram, partial.path / RAM)
            make_upper(self.home, partial.path / UPPER, root.upper_size_mib)
            lower = partial.keep_open(open_locked(rootfs, writable=False))
            upper = partial.keep_open(open_locked(partial.path / UPPER, writable=True))
            state = partial.keep_open(os.open(base.state, os.O_RDONLY | os.O_CLOEXEC))
            disks = (
                Disk("rootfs", lower, "raw", read_only=True),
                Disk("upper", upper, "raw", read_only=False),
            )
            async with self._running(partial.machine(shape, disks, state), shape) as running:
                await Handshake(running.guest).mount(ROOT)
                await _save(running, partial.path / STATE)
            return partial.publish()

    @asynccontextmanager
    async def _running(self, machine: Machine, shape: Shape) -> AsyncIterator[RunningMachine]:
        """A machine that is there for the block. Raises BootFailure."""
        # Counted from the other end than sandboxes are: no builder is any sandbox's user.
        vm = launch(machine, shape.host.qemu, shape.host.jail.kind, identity=-os.getpid())
        running = await RunningMachine.attach(vm, "template", self.store.root / "logs")
        try:
            async with asyncio.timeout(BUILD_TIMEOUT):
                yield running
        except LinkLost as lost:
            raise await running.why(lost) from lost
        except TimeoutError:
            raise BootFailure(f"not ready after {BUILD_TIMEOUT:g} s") from None
        finally:
            await running.end()
            vm.close()


async def _save(running: RunningMachine, state: Path) -> None:
    """Stop the machine and keep its devices' state; its RAM is in its file already."""
    monitor = await running.connected()
    await monitor.execute("stop")
    write_atomically(state, await monitor.save_devices())


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

    def keep_open(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def machine(
        self, shape: Shape, disks: tuple[Disk, ...] | None = None, state: int | None = None
    ) -> Machine:
        ram = self.path / RAM
        ram.chmod(0o666)  # for the jailed QEMU's user; nobody else can enter the directory
        shared = RamFile(ram, shared=True)
        return shape.machine(ram=shared) if disks is None else shape.machine(disks, shared, state)

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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--image")
    parser.add_argument("--rootfs", type=Path)
    parser.add_argument("--upper-size", type=int)
    parser.add_argument("--background", action="store_true")
    given = parser.parse_args()
    if given.background:
        os.nice(19)
    try:
        home = Home.open()
        host = examine_host(home, prepare_kernel(home))
        root = ImageRoot(given.image, given.upper_size) if given.image else None
        shape = Shape(host, given.cpus, given.memory, root)
        made = asyncio.run(Builder(home, TemplateStore(home)).build(shape, given.rootfs))
    except (MicrosandboxError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(made.key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
