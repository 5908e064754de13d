"""Measurements of running sandboxes: named here, taken by a later release."""

from __future__ import annotations

from typing import Self

from microsandbox.errors import NotSupportedYetError
from microsandbox.types import SandboxMetrics
from microsandbox.unavailable import Unavailable


async def all_sandbox_metrics() -> dict[str, SandboxMetrics]:
    """The latest sample of every running sandbox."""
    raise NotSupportedYetError("metrics")


class MetricsStream(Unavailable):
    """Samples of one sandbox at an interval."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SandboxMetrics:
        raise NotSupportedYetError("metrics_stream")
