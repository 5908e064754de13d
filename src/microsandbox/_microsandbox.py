"""The names of microsandbox 0.5.6's native module, for programs that import from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microsandbox._runtime import resolved_msb_path, set_runtime_msb_path

if TYPE_CHECKING:
    from microsandbox.agent import AgentClient as PyAgentClient
    from microsandbox.types import ExecStreamEvent as ExecEvent
    from microsandbox.volume.public import VolumeFs
else:

    def __getattr__(name: str) -> Any:
        if name == "PyAgentClient":
            from microsandbox.agent import AgentClient

            return AgentClient
        if name == "ExecEvent":
            from microsandbox.types import ExecStreamEvent

            return ExecStreamEvent
        if name == "VolumeFs":
            from microsandbox.volume.public import VolumeFs

            return VolumeFs
        import microsandbox

        if name in microsandbox.__all__:
            return getattr(microsandbox, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ExecEvent", "PyAgentClient", "VolumeFs", "resolved_msb_path", "set_runtime_msb_path"]
