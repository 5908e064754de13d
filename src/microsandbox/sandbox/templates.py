"""Which template a sandbox goes on from, and which one is to be built for the next."""

from __future__ import annotations

from msgspec import Struct

from microsandbox import environment
from microsandbox.image.store import StoredImage
from microsandbox.runtime.plan import BuilderPlan, TemplatePlan
from microsandbox.sandbox.mounts import implicit_tmp_mib
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.store.home import Home
from microsandbox.template.shape import ImageRoot, Shape
from microsandbox.template.store import StoredTemplate, TemplateStore
from microsandbox.vmm.host import Host


def templates_wanted() -> bool:
    """By ``MSB_TEMPLATES``: ``auto`` (the default) or ``off``. Raises InvalidConfigError."""
    return environment.choice(environment.TEMPLATES) == "auto"


class Start(Struct, frozen=True):
    """How a sandbox starts: from a template or, without one, with a boot."""

    template: StoredTemplate | None = None
    builder: BuilderPlan | None = None

    @property
    def rooted(self) -> bool:
        """Whether the image is mounted in the template, and the writable layer must be a copy of its own."""
        return self.template is not None and self.template.description.image is not None

    @property
    def plan(self) -> TemplatePlan | None:
        template = self.template
        if template is None:
            return None
        return TemplatePlan(template.key, str(template.ram), str(template.state), self.rooted)


def choose_start(home: Home, host: Host, config: SandboxConfig, image: StoredImage, *, fresh: bool) -> Start:
    """The best there is. ``fresh`` sandboxes have nothing in their writable layer yet.

    A sandbox that was there before has its own, and so goes on from a template without an image.
    """
    if not templates_wanted():
        return Start()
    store = TemplateStore(home)
    tmp_size = implicit_tmp_mib(config.memory_mib)
    root = ImageRoot.of(image.manifest_digest, image.rootfs, config.image.upper_size_mib, tmp_size)
    shape = Shape(host, config.cpus, config.memory_mib, root if fresh else None)
    template = store.find(shape.key)
    if template is not None:
        template.touch()
        return Start(template)
    builder = _builder(store, shape, image) if store.failure(shape.key) is None else None
    template = store.find(shape.bare.key) if shape.root is not None else None
    if template is not None:
        template.touch()
    return Start(template, builder)


def _builder(store: TemplateStore, shape: Shape, image: StoredImage) -> BuilderPlan:
    arguments = builder_arguments(shape, image)
    return BuilderPlan(arguments, str(store.lock(shape.key).path.absolute()))


def builder_arguments(shape: Shape, image: StoredImage | None) -> tuple[str, ...]:
    """For the template builder. ``image`` is that of the shape's root."""
    arguments = ["--cpus", str(shape.cpus), "--memory", str(shape.memory_mib)]
    if shape.root is not None and image is not None:
        arguments += ["--image", shape.root.digest, "--rootfs", str(image.rootfs.absolute())]
        arguments += ["--upper-size", str(shape.root.upper_size_mib)]
        arguments += ["--tmp-size", str(shape.root.tmp_size_mib)]
    return tuple(arguments)
