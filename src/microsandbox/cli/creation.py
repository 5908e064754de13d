"""From the options of ``run`` and ``create`` to a sandbox: everything is checked before anything is made."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from microsandbox.cli.failures import refusing_arguments
from microsandbox.cli.model import Invocation, UsageError
from microsandbox.cli.pull_display import PullDisplay
from microsandbox.cli.sandbox_options import CREATION
from microsandbox.cli.values import Script, Tmpfs, script_text
from microsandbox.errors import (
    MicrosandboxError,
    NotSupportedYetError,
    SandboxAlreadyExistsError,
    SandboxNotFoundError,
)
from microsandbox.sandbox.sandbox import Sandbox
from microsandbox.store.home import Home, validate_name

if TYPE_CHECKING:
    from microsandbox.sandbox.pull_session import PullProgress

#: Options whose values the SDK takes as they are, by its keyword.
_PLAIN = {
    "cpus": "cpus",
    "memory": "memory",
    "workdir": "workdir",
    "shell": "shell",
    "security": "security",
    "hostname": "hostname",
    "user": "user",
    "pull": "pull_policy",
    "log_level": "log_level",
    "max_duration": "max_duration",
    "idle_timeout": "idle_timeout",
    "pause_after": "pause_after",
    "replace_with_timeout": "replace_with_timeout",
}


class Creation(Struct, frozen=True):
    """A sandbox to be made: its name, whether that was made up, and the SDK's keywords."""

    name: str
    generated: bool
    reference: str
    keywords: dict[str, Any]
    quiet: bool

    @property
    def replaces(self) -> bool:
        return "replace" in self.keywords or "replace_with_timeout" in self.keywords

    @classmethod
    def of(cls, invocation: Invocation) -> Creation:
        """Raises UsageError, InvalidConfigError, NotSupportedYetError."""
        name: str | None = invocation["name"]
        if name is not None:
            validate_name(name)
        if invocation["security"] == "restricted":
            raise NotSupportedYetError("--security restricted")
        keywords = {
            keyword: invocation[option]
            for option, keyword in _PLAIN.items()
            if invocation[option] is not None
        }
        keywords.setdefault("log_level", invocation.log_level)
        if invocation["replace"]:
            keywords["replace"] = True
        if invocation["entrypoint"] is not None:
            keywords["entrypoint"] = [invocation["entrypoint"]]
        keywords |= {"env": dict(invocation["env"]), "labels": dict(invocation["label"])}
        keywords["volumes"] = _volumes(invocation["tmpfs"], invocation.path)
        keywords["scripts"] = _scripts(invocation)
        keywords["image"] = _image(invocation["image"], invocation["oci_upper_size"])
        shown = name if name is not None else f"msb-{secrets.randbits(32):08x}"
        return cls(shown, name is None, invocation["image"], keywords, invocation["quiet"])


def creation_options_given(invocation: Invocation) -> bool:
    """Whether anything was typed that only shapes a new sandbox."""
    return any(invocation.given(option) for option in CREATION)


async def create(creation: Creation, *, detached: bool) -> Sandbox:
    """Make and boot it, showing the pull. Nothing unnamed is left behind by a failure.

    Raises SandboxAlreadyExistsError, ImageError, BootError and the rest of ``Sandbox.create``.
    """
    try:
        return await _create(creation, detached=detached)
    except SandboxAlreadyExistsError:
        raise  # it is somebody else's
    except BaseException:
        if creation.generated:
            await discard(creation.name)
        raise


async def _create(creation: Creation, *, detached: bool) -> Sandbox:
    with refusing_arguments():
        session = Sandbox.create_with_progress(creation.name, **creation.keywords, detached=detached)
    making = asyncio.ensure_future(session.result())
    showing = asyncio.ensure_future(_show(session.progress, creation))
    try:
        await asyncio.wait((making,))
        return making.result()
    except BaseException:
        making.cancel()
        await asyncio.wait((making,))
        if not making.cancelled() and making.exception() is None:
            await making.result().kill()  # it came up while we were being interrupted
        raise
    finally:
        showing.cancel()
        await asyncio.wait((showing,))


async def _show(events: PullProgress, creation: Creation) -> None:
    """Draw the pull; the events end when it does, before the machine boots."""
    with PullDisplay(creation.reference, quiet=creation.quiet) as display:
        async for event in events:
            display.show(event)


async def discard(name: str) -> None:
    """Make sure that an unnamed sandbox is gone, whatever it got to."""
    with suppress(SandboxNotFoundError):
        handle = await Sandbox.get(name)
        with suppress(MicrosandboxError):
            await handle.kill()
        await Sandbox.remove(name)


def _image(reference: str, upper_size_mib: int | None) -> Any:
    if upper_size_mib is None:
        return reference
    from microsandbox.types import Image

    return Image.oci(reference, upper_size_mib=upper_size_mib)


def _volumes(mounts: Sequence[Tmpfs], path: tuple[str, ...]) -> dict[str, dict[str, object]]:
    volumes: dict[str, dict[str, object]] = {}
    for mount in mounts:
        if mount.path in volumes:
            raise UsageError(f"--tmpfs: {mount.path} is mounted more than once", path)
        volumes[mount.path] = mount.mount
    return volumes


def _scripts(invocation: Invocation) -> dict[str, str]:
    """In the order --script, --script-raw, --script-path."""
    items: list[Script] = [
        *invocation["script"],
        *invocation["script_raw"],
        *invocation["script_path"],
    ]
    scripts: dict[str, str] = {}
    for item in items:
        if item.name in scripts:
            raise UsageError(f"script name '{item.name}' specified more than once", invocation.path)
        scripts[item.name] = script_text(
            item, invocation["shell"] or Home.open().config.sandbox_defaults.shell
        )
    return scripts
