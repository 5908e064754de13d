"""Event classes for type annotations, as microsandbox 0.5.6 exports them.

Nothing makes instances of them: what a command's stream and a pull's progress yield has ``event_type`` and
is described at ``ExecStreamEvent`` and ``PullSession``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartedEvent:
    pid: int


@dataclass(frozen=True, slots=True)
class StdoutEvent:
    data: bytes


@dataclass(frozen=True, slots=True)
class StderrEvent:
    data: bytes


@dataclass(frozen=True, slots=True)
class ExitedEvent:
    code: int


ExecEvent = StartedEvent | StdoutEvent | StderrEvent | ExitedEvent


@dataclass(frozen=True, slots=True)
class Resolving:
    reference: str


@dataclass(frozen=True, slots=True)
class Resolved:
    reference: str
    manifest_digest: str
    layer_count: int
    total_download_bytes: int | None


@dataclass(frozen=True, slots=True)
class LayerDownloadProgress:
    layer_index: int
    digest: str
    downloaded_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class LayerDownloadComplete:
    layer_index: int
    digest: str
    downloaded_bytes: int


@dataclass(frozen=True, slots=True)
class LayerExtractStarted:
    layer_index: int
    diff_id: str


@dataclass(frozen=True, slots=True)
class LayerExtractProgress:
    layer_index: int
    bytes_read: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class LayerExtractComplete:
    layer_index: int
    diff_id: str


@dataclass(frozen=True, slots=True)
class LayerIndexStarted:
    layer_index: int


@dataclass(frozen=True, slots=True)
class LayerIndexComplete:
    layer_index: int


@dataclass(frozen=True, slots=True)
class PullComplete:
    reference: str
    layer_count: int


PullProgress = (
    Resolving
    | Resolved
    | LayerDownloadProgress
    | LayerDownloadComplete
    | LayerExtractStarted
    | LayerExtractProgress
    | LayerExtractComplete
    | LayerIndexStarted
    | LayerIndexComplete
    | PullComplete
)
