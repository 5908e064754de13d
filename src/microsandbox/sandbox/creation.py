"""Making sandboxes: checks, image, row, writable layer, boot; and booting one that exists again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox.errors import (
    BootError,
    ImageNotFoundError,
    MicrosandboxError,
    SandboxAlreadyExistsError,
)
from microsandbox.runtime.disks import copy_upper, make_upper
from microsandbox.runtime.spawn import SpawnMode
from microsandbox.runtime.trace import Trace
from microsandbox.sandbox import lifecycle
from microsandbox.sandbox.boot import GIVEN_UP, boot, prepare_host, starting
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.options import CreateOptions, SandboxConfig
from microsandbox.sandbox.sandbox import Sandbox
from microsandbox.sandbox.stored_config import dump_config, load_config, merge_image
from microsandbox.sandbox.templates import Start, choose_start
from microsandbox.sandbox.validation import validate, validate_merged
from microsandbox.store.files import host_errors, make_private
from microsandbox.store.home import Home, SandboxPaths
from microsandbox.store.sandboxes import SandboxRow

if TYPE_CHECKING:
    from microsandbox.image.progress import PullEvent
    from microsandbox.image.store import StoredImage
    from microsandbox.vmm.host import Host

Progress = Callable[["PullEvent"], None]


async def create(
    context: Context,
    options: CreateOptions,
    progress: Progress | None = None,
    *,
    on_pulled: Callable[[], None] = lambda: None,
) -> Sandbox:
    """Create and boot a sandbox. A failure before its row leaves nothing, a later one a stopped sandbox."""
    with host_errors():
        return await _create(context, options, progress, on_pulled)


async def _create(
    context: Context, options: CreateOptions, progress: Progress | None, on_pulled: Callable[[], None]
) -> Sandbox:
    trace = Trace()
    trace.mark("create")
    config = options.config
    validate(config)
    context.home.agent_socket(config.name)
    if options.replace:
        await lifecycle.make_way(context, config.name, options.replace_timeout)
    else:
        _check_free(context, config.name)
    host = asyncio.ensure_future(prepare_host(context))
    try:
        row, config, image, place = await _claim(context, config, progress, host, on_pulled)
    finally:
        host.cancel()
    ready = host.result()
    trace.mark("image and name claimed")
    with place:
        start = await _make_files(context, row, config, image, ready, place)
    trace.mark("files made")
    mode = SpawnMode.DETACHED if options.detached else SpawnMode.ATTACHED
    with starting(context, row):
        handle, connection = await boot(context, row, config, image, ready, start, mode, trace)
    return Sandbox(context, row, config, connection, handle)


async def start(context: Context, name: str, *, detached: bool) -> Sandbox:
    """Boot a stopped or crashed sandbox again, with its writable layer as it was left."""
    with host_errors():
        return await _start(context, name, detached=detached)


async def _start(context: Context, name: str, *, detached: bool) -> Sandbox:
    trace = Trace()
    trace.mark("start")
    validate_merged(
        load_config(context.sandboxes.get(name).config)
    )  # one that cannot be started is not claimed
    ready = await prepare_host(context)
    row = context.sandboxes.begin_start(name)
    with starting(context, row):
        config = load_config(row.config)  # it may have been made anew since
        paths = context.home.sandbox(name)
        if not paths.directory.is_dir() or not paths.upper.is_file():
            raise MicrosandboxError(f"sandbox state missing for '{name}': {paths.directory}")
        image = _stored_image(context, config)
        mode = SpawnMode.DETACHED if detached else SpawnMode.ATTACHED
        how = choose_start(context.home, ready, config, image, fresh=False)
        handle, connection = await boot(context, row, config, image, ready, how, mode, trace)
    return Sandbox(context, row, config, connection, handle)


def _check_free(context: Context, name: str) -> None:
    if context.sandboxes.find(name) is not None or context.home.sandbox(name).directory.exists():
        raise SandboxAlreadyExistsError(name)


async def _claim(
    context: Context,
    config: SandboxConfig,
    progress: Progress | None,
    host: Awaitable[Host],
    on_pulled: Callable[[], None],
) -> tuple[SandboxRow, SandboxConfig, StoredImage, Place]:
    """The row that makes the name and the image ours, once both image and host are ready."""
    place = Place(context.home.sandbox(config.name).directory)
    while True:
        image = await context.images.pull(
            config.image.reference, policy=config.pull_policy, progress=progress
        )
        on_pulled()
        merged = merge_image(config, image)
        validate_merged(merged)
        await host
        try:
            row = context.sandboxes.create(
                config.name, dump_config(merged), merged.labels, image.manifest_digest, place.make
            )
        except ImageNotFoundError:  # a prune came between: look, and pull, again
            continue
        except BaseException:
            place.unmake()
            raise
        return row, merged, image, place


def _stored_image(context: Context, config: SandboxConfig) -> StoredImage:
    """The image a sandbox was made from, by the digest that was pinned then."""
    try:
        return context.images.by_digest(config.manifest_digest or "")
    except ImageNotFoundError as error:
        raise MicrosandboxError(
            f"sandbox '{config.name}' cannot start: image missing: {config.image.reference} "
            f"({config.manifest_digest}); pull it again"
        ) from error


class Place:
    """The directory of a sandbox that is being made. ``path`` leads to it, whoever has its name by now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None

    def make(self) -> None:
        """Raises FileExistsError."""
        make_private(self._directory.parent)
        self._directory.mkdir(mode=0o700)
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def unmake(self) -> None:
        """Take back what make() did, if it did, when there is no row after all."""
        if self._fd is not None:
            self.close()
            self._directory.rmdir()

    @property
    def path(self) -> Path:
        return Path(f"/proc/self/fd/{self._fd}")

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


async def _make_files(
    context: Context, row: SandboxRow, config: SandboxConfig, image: StoredImage, host: Host, place: Place
) -> Start:
    """What is in the sandbox's directory; a failure takes directory and row with it.

    Returns how the sandbox starts, after all: a template may have been collected meanwhile.
    """
    paths = SandboxPaths(place.path, place.path)
    try:
        start = choose_start(context.home, host, config, image, fresh=True)
        paths.logs.mkdir(
            mode=0o700, exist_ok=True
        )  # by a run that lost the name just now, and starts in vain
        making = asyncio.ensure_future(
            asyncio.to_thread(_make_upper, context.home, config, paths.upper, start)
        )
        try:
            return await asyncio.shield(making)
        finally:  # a thread cannot be cancelled, and the descriptor must stay what it is
            await asyncio.wait((making,))
    except BaseException as error:
        doomed = lifecycle.Doomed(context.home.sandbox(row.name).directory)
        given_up = not context.sandboxes.discard(row, doomed.take_away)
        doomed.delete()
        if given_up and isinstance(error, Exception):
            raise BootError(row.name, GIVEN_UP) from error
        raise


def _make_upper(home: Home, config: SandboxConfig, target: Path, start: Start) -> Start:
    if start.rooted and start.template is not None:
        try:
            copy_upper(start.template.upper, target)
        except FileNotFoundError:
            start = Start()
        else:
            return start
    make_upper(home, target, config.image.upper_size_mib)
    return start
