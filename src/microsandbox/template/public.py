"""``microsandbox.Template``: memory templates for those who build or remove them ahead of time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microsandbox.arguments import optional, parameter, text, whole
from microsandbox.errors import InvalidConfigError, TemplateError
from microsandbox.runtime.builder_process import build
from microsandbox.sandbox.boot import prepare_host
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.mounts import implicit_tmp_mib
from microsandbox.sandbox.rootfs import OciImage, root_image
from microsandbox.sandbox.templates import builder_arguments
from microsandbox.store.files import host_errors
from microsandbox.store.home import Home
from microsandbox.template.shape import ImageRoot, Shape
from microsandbox.template.store import StoredTemplate, TemplateStore
from microsandbox.units import MIB

if TYPE_CHECKING:
    from microsandbox.types import ImageSource

#: Virtual CPUs a template may have.
MAX_CPUS = 8


@dataclass(frozen=True)
class TemplateInfo:
    """A memory template, as it was when it was looked up. Times are Unix milliseconds.

    ``image`` is a reference of the image that is mounted in it, None when it has none any more;
    ``manifest_digest`` and ``upper_size_mib`` (of the writable layer) are None for a template without an
    image. ``memory`` is in MiB, ``size_bytes`` what it occupies on disk.
    """

    id: str
    image: str | None
    manifest_digest: str | None
    upper_size_mib: int | None
    cpus: int
    memory: int
    accelerator: str
    kernel: str
    qemu_version: str
    size_bytes: int
    created_at: float
    last_used_at: float


class Template:
    """Memory templates: booted guests that sandboxes go on from, made when they are first missed or here."""

    def __init__(self) -> None:
        raise TypeError("No constructor defined for Template")

    @staticmethod
    async def list() -> list[TemplateInfo]:
        """All that are whole, the last used first."""
        context = Context.current()
        return _infos(context, TemplateStore(context.home).all())

    @staticmethod
    async def build(
        image: str | os.PathLike[str] | ImageSource | None = None,
        *,
        cpus: int | None = None,
        memory: int | None = None,
    ) -> TemplateInfo:
        """Build the template of a shape unless it is there; with ``image``, also the one that has it mounted.

        ``image`` is what ``Sandbox.create`` takes, and is pulled if it is missing. ``cpus`` (1 to 8) and
        ``memory`` (MiB, at most what the host has) default to the configuration's. Returns the template with
        the image, else the one without. A cancelled build leaves nothing. Raises TemplateError,
        InvalidConfigError, and what a missing host part, kernel or image raises.
        """
        context = Context.current()
        cpus, memory = checked_shape(context.home, cpus, memory)
        source = None if image is None else root_image({"image": image}, context.home)
        with host_errors():
            return await _build(context, source, cpus, memory)

    @staticmethod
    async def remove(id: str) -> None:
        """Remove the template of that id, or whose id alone starts so. Sandboxes that run from it go on.

        Raises TemplateError when there is none, or several.
        """
        store = TemplateStore(Context.current().home)
        with host_errors():
            store.discard(store.resolve(parameter("id", text, id)))

    @staticmethod
    async def remove_all() -> None:
        """Remove every template. Those of sandboxes to come are built again when they are missed."""
        store = TemplateStore(Context.current().home)
        with host_errors():
            for key in store.ids():
                store.discard(key)


async def _build(context: Context, source: OciImage | None, cpus: int, memory: int) -> TemplateInfo:
    host = await prepare_host(context)
    image = None if source is None else await context.images.pull(source.reference)
    root = None
    if source is not None and image is not None:
        tmp_size = implicit_tmp_mib(memory)
        root = ImageRoot.of(image.manifest_digest, image.rootfs, source.upper_size_mib, tmp_size)
    shape = Shape(host, cpus, memory, root)
    store = TemplateStore(context.home)
    found = store.find(shape.key)
    if found is None:
        found = store.find(await build(builder_arguments(shape, image)))
    infos = _infos(context, [found] if found is not None else [])
    if not infos:
        raise TemplateError(f"the template {shape.key} was removed as soon as it was built")
    return infos[0]


def checked_shape(home: Home, cpus: Any, memory: Any) -> tuple[int, int]:
    """CPUs and MiB, the configuration's where None. Raises InvalidConfigError, TypeError, OverflowError."""
    defaults = home.config.sandbox_defaults
    cpus = parameter("cpus", lambda value: optional(whole, value), cpus)
    memory = parameter("memory", lambda value: optional(whole, value), memory)
    cpus = defaults.cpus if cpus is None else cpus
    memory = defaults.memory_mib if memory is None else memory
    if not 1 <= cpus <= MAX_CPUS:
        raise InvalidConfigError(f"cpus of a template must be 1 to {MAX_CPUS}, got {cpus}")
    if memory == 0:
        raise InvalidConfigError("memory must be greater than 0")
    if memory > (available := host_memory_mib()):
        raise InvalidConfigError(f"memory of {memory} MiB is more than this host has ({available} MiB)")
    return cpus, memory


def host_memory_mib() -> int:
    """The host's RAM."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB


def _infos(context: Context, templates: Iterable[StoredTemplate]) -> list[TemplateInfo]:
    references: dict[str, str] = {}
    for record in context.images.list():
        references.setdefault(record.manifest_digest, record.reference)
    infos = []
    for template in templates:
        with suppress(FileNotFoundError):  # it is being taken away
            infos.append(_info(template, references))
    return infos


def _info(template: StoredTemplate, references: dict[str, str]) -> TemplateInfo:
    description = template.description
    return TemplateInfo(
        id=template.key,
        image=None if description.image is None else references.get(description.image),
        manifest_digest=description.image,
        upper_size_mib=description.upper_size_mib,
        cpus=description.cpus,
        memory=description.memory_mib,
        accelerator=description.accelerator,
        kernel=description.kernel,
        qemu_version=description.qemu,
        size_bytes=template.disk_bytes,
        created_at=template.created_at * 1000,
        last_used_at=template.used_at * 1000,
    )
