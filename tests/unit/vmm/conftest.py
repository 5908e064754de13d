"""The distribution's kernel package, downloaded once for all tests of a run."""

from types import SimpleNamespace

import pytest

from microsandbox.vmm import kernel_package
from microsandbox.vmm.architecture import X86_64


@pytest.fixture(scope="session")
def real_package(tmp_path_factory):
    """Debian's or Ubuntu's package of the kernel image for x86_64."""
    directory = tmp_path_factory.mktemp("kernel-package")
    names = kernel_package.meta_packages(X86_64)
    return kernel_package.download(names, directory, lambda _: None)


@pytest.fixture(scope="session")
def real_parts(real_package, tmp_path_factory):
    """The same, taken apart: ``parts``, the ``directory`` it was done in, the ``reports`` meanwhile."""
    reports = []
    directory = tmp_path_factory.mktemp("kernel-parts")
    parts = kernel_package.from_packages(real_package, "x86_64", directory, reports.append)
    return SimpleNamespace(parts=parts, directory=directory, reports=reports)
