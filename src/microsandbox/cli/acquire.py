"""Sandboxes that exist already: connected when they run, started when they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from microsandbox.cli import output
from microsandbox.cli.interrupts import Signals
from microsandbox.cli.pull_display import PullDisplay
from microsandbox.cli.spinner import spinner
from microsandbox.errors import ImageError, ImageNotFoundError, MicrosandboxError, SandboxPausedError
from microsandbox.sandbox.sandbox import Sandbox

if TYPE_CHECKING:
    from microsandbox.sandbox.handle import SandboxHandle


class Held(Struct):
    """A connected sandbox, and what this invocation owes it when it is done: nothing if it ``stays``."""

    sandbox: Sandbox
    name: str
    started_here: bool
    throw_away: bool = False
    stays: bool = False

    async def release(self, signals: Signals, mark: Callable[[str], None] = lambda _: None) -> None:
        """Stop it if it was started here, remove it if it has no name. A second signal kills it.

        A failure is said, not raised: it must not take the place of how the command ended. ``mark`` is told
        what was done.
        """
        if not self.started_here or self.stays:
            await self.sandbox.detach()
            return
        try:
            if self.throw_away:  # nobody will see what a flush would save
                await self.sandbox.kill()
            else:
                await signals.hurry(self.sandbox.stop(), self.sandbox.kill)
            mark("sandbox stopped")
        except MicrosandboxError as error:
            output.error(str(error))
        if self.throw_away:
            try:
                await Sandbox.remove(self.name)
                mark("sandbox removed")
            except (MicrosandboxError, OSError) as error:
                output.error(str(error))


async def take(name: str, *, quiet: bool, detached: bool = False) -> Held:
    """Connect to a running sandbox or start a stopped one. Raises SandboxNotFoundError, BootError."""
    handle = await Sandbox.get(name)
    if handle.status in ("running", "draining"):
        return Held(await handle.connect(), name, started_here=False)
    if handle.status == "paused":
        return Held(await _wake(handle), name, started_here=False)
    await ensure_image(handle, quiet=quiet)
    async with spinner("Starting", name, quiet=quiet):
        return Held(await handle.start(detached=detached), name, started_here=True)


async def _wake(handle: SandboxHandle) -> Sandbox:
    """Connect to a paused one if it goes on by itself, as one does that was paused because it was idle."""
    sandbox = await handle.connect()
    try:
        await sandbox.fs.exists("/")
    except SandboxPausedError as error:
        await sandbox.detach()
        raise MicrosandboxError(
            f"sandbox '{handle.name}' is in state Paused and cannot be started"
        ) from error
    return sandbox


async def ensure_image(handle: SandboxHandle, *, quiet: bool = True) -> None:
    """Pull the image a sandbox was made from if it is gone from the cache."""
    from microsandbox.image.public import Image

    config = handle.config()
    digest = config.get("manifest_digest")
    source = config.get("image")
    oci = source.get("Oci") if isinstance(source, dict) else None
    reference = oci.get("reference") if isinstance(oci, dict) else None
    if digest is None or not isinstance(reference, str):
        return
    if _is_stored(digest):
        return
    try:
        with PullDisplay(reference, quiet=quiet) as display:
            await Image.pull(pinned(reference, digest), progress=display.show)
    except ImageError as error:
        raise MicrosandboxError(
            f"sandbox '{handle.name}' cannot start: its image {reference} ({digest}) is not in the cache and "
            f"cannot be pulled again: {error.detail}"
        ) from error


def _is_stored(digest: str) -> bool:
    """Whether the image is there, under whatever name or none."""
    from microsandbox.image.public import image_store

    try:
        image_store().by_digest(digest)
    except ImageNotFoundError:
        return False
    return True


def pinned(reference: str, digest: str) -> str:
    """The same repository by digest: a tag may have moved since the sandbox was made."""
    repository = reference.partition("@")[0]
    head, slash, last = repository.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}@{digest}"
