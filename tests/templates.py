"""The memory templates of an image in a test's home: building them, finding them, making them go."""

import asyncio
import os
import subprocess
from dataclasses import dataclass

from microsandbox.image.store import StoredImage
from microsandbox.runtime.builder_process import builder_command, module_environment
from microsandbox.sandbox.context import Context
from microsandbox.sandbox.mounts import implicit_tmp_mib
from microsandbox.sandbox.templates import builder_arguments
from microsandbox.store.home import Home
from microsandbox.template.shape import ImageRoot, Shape
from microsandbox.template.store import TemplateStore
from microsandbox.vmm.host import examine_host
from microsandbox.vmm.kernel import installed_kernel


@dataclass(frozen=True)
class Templates:
    """Shapes of one image, and the store of the home that ``MSB_HOME`` names."""

    home: Home
    image: StoredImage
    store: TemplateStore

    @classmethod
    def of(cls, reference):
        context = Context.current()
        image = asyncio.run(context.images.pull(reference, policy="never"))
        return cls(context.home, image, TemplateStore(context.home))

    def shape(self, cpus=1, memory=512, upper_size=None):
        host = examine_host(self.home, installed_kernel(self.home))
        upper_size = upper_size or self.home.config.sandbox_defaults.upper_size_mib
        root = ImageRoot.of(
            self.image.manifest_digest, self.image.rootfs, upper_size, implicit_tmp_mib(memory)
        )
        return Shape(host, cpus, memory, root)

    def builder(self, shape, **options):
        """Start a builder of that shape's template; a process to be waited for."""
        command = builder_command(builder_arguments(shape, self.image))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(command, env=module_environment(), **options)

    def build(self, cpus=1, memory=512):
        """Have the templates of a shape, without and with the image; that with the image."""
        shape = self.shape(cpus, memory)
        if self.store.find(shape.key) is None:
            builder = self.builder(shape)
            said, complaint = builder.communicate(timeout=120)
            assert (builder.returncode, said) == (0, f"{shape.key}\n"), complaint
        return self.store.find(shape.key)

    def keys(self):
        return {template.key for template in self.store.all()}

    def none(self):
        """As in a home that is new."""
        for template in self.store.all():
            self.store.discard(template.key)
        for record in self.store.root.glob(".failed-*"):
            os.unlink(record)
