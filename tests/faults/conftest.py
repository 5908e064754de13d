"""Fixtures of the tests that break things."""

from tests.vm.conftest import clean, cold, name, templates, usual_templates

__all__ = ["clean", "cold", "name", "templates", "usual_templates"]
