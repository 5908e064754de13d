"""Fixtures of the tests that boot machines."""

import itertools

import pytest

from tests import audit

_numbers = itertools.count(1)


@pytest.fixture
def name(session_home):
    """A sandbox name that no other test uses."""
    return f"t{next(_numbers)}"


@pytest.fixture
def clean(session_home):
    """Afterwards nothing of any sandbox may be left but stopped rows."""
    before = audit.machines()
    yield session_home
    audit.wait_clean(session_home, within=10)
    assert audit.machines() <= before, "a machine outlived its sandbox"
