"""A home of its own for a benchmark, with a small image in it and, where there are such, its template."""

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import MSB, report
from microsandbox import Image, Sandbox
from microsandbox.store.home import Home
from tests.images import busybox_archive

#: A name that podman takes for an image of this host, too.
BUSYBOX = "localhost/bb:latest"


@contextmanager
def temporary_home():
    """Make this process and its children use an empty home that shares the prepared guest kernel."""
    kernels = Home.open().kernels.absolute()
    with tempfile.TemporaryDirectory(prefix="msb-bench-") as directory:
        (Path(directory) / "kernels").symlink_to(kernels)
        os.environ["MSB_HOME"] = directory
        try:
            yield Path(directory)
        finally:
            Home.open().metrics_registry.unlink(missing_ok=True)


async def load_busybox(home, memory=512):
    """Load the image, have everything made that first use makes, and return the archive's path.

    The template is built ahead: measured sandboxes neither wait for it nor run beside its making.
    """
    archive = busybox_archive(home / "busybox.tar", reference=BUSYBOX)
    await Image.load(archive)
    building = [*MSB, "template", "build", BUSYBOX, "--memory", f"{memory}M"]
    built = subprocess.run(building, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if built.returncode:
        report("memory template", "none, all starts are cold", built.stderr.strip().partition("\n")[0])
    async with await Sandbox.create("first", image=BUSYBOX, memory=memory) as sandbox:
        await sandbox.exec("/bin/true")
    return archive
