"""Fixtures of all tests: a home of their own that shares the prepared guest kernel, and images in it."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from microsandbox.store.home import Home
from microsandbox.vmm.kernel import installed_kernel, prepare_kernel
from tests import audit
from tests.images import busybox_archive

# Homes and their config.json must not be writable by a group, which other umasks would have them be.
os.umask(0o022)
# A shell that starts us in the background has us ignore Ctrl-C, and the commands under test with us.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def prepared_kernels():
    """The kernels directory of the user's own home, filled if it is empty."""
    home = Home.open()
    if installed_kernel(home) is None:
        prepare_kernel(home)
    return home.kernels.absolute()


@pytest.fixture(scope="session")
def session_home(prepared_kernels):
    """A home for all sandboxes of this run, with a short path: socket paths are limited."""
    directory = Path(tempfile.mkdtemp(prefix="msb-test-"))
    (directory / "kernels").symlink_to(prepared_kernels)
    before = os.environ.get("MSB_HOME")
    os.environ["MSB_HOME"] = str(directory)
    yield directory
    left = audit.leftovers(directory)
    Home.open().metrics_registry.unlink(missing_ok=True)
    if before is None:
        del os.environ["MSB_HOME"]
    else:
        os.environ["MSB_HOME"] = before
    shutil.rmtree(directory)
    assert left == [], "the whole test run left something behind"


@pytest.fixture(scope="session")
def busybox(session_home, tmp_path_factory):
    """The reference of a busybox image that is in the session's home."""
    import asyncio

    from microsandbox import Image

    archive = busybox_archive(tmp_path_factory.mktemp("images") / "busybox.tar")
    [reference] = asyncio.run(Image.load(archive))
    return reference
