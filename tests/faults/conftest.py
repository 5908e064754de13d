"""Fixtures of the tests that break things."""

from tests.vm.conftest import clean, name

__all__ = ["clean", "name"]
