"""What tests of several folders start from."""

import pytest

from microsandbox.sandbox.context import Context


@pytest.fixture
def context(tmp_path, monkeypatch):
    """The context of an empty home."""
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    context = Context.current()
    yield context
    context.home.metrics_registry.unlink(missing_ok=True)
