"""Fixtures of the tests that boot machines.

Most sandboxes go on from templates, which are built once for the usual shapes. A test that is about booting
asks for ``cold``.
"""

import itertools

import pytest

from tests import audit
from tests.templates import Templates

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def usual_templates(busybox):
    """The templates of sandboxes without special wishes, with and without the image."""
    Templates.of(busybox).build()


@pytest.fixture
def templates(busybox):
    """The templates of the busybox image: what there is, building it, having none."""
    return Templates.of(busybox)


@pytest.fixture
def cold(monkeypatch):
    """Sandboxes of this test boot, whatever templates there are, and have none built."""
    monkeypatch.setenv("MSB_TEMPLATES", "off")


@pytest.fixture
def name(session_home):
    """A sandbox name that no other test uses."""
    return f"t{next(_numbers)}"


@pytest.fixture
def clean(session_home):
    """Afterwards nothing of any sandbox may be left but stopped rows."""
    yield session_home
    audit.wait_clean(session_home, within=10)
    assert audit.machines(session_home) == set(), "a machine outlived its sandbox"
