"""A real virtual machine per sandbox, without a daemon and without root.

    from microsandbox import Sandbox

    async with await Sandbox.create("hello", image="alpine") as sandbox:
        output = await sandbox.exec("uname", ["-a"])
        print(output.stdout_text)

Every name is loaded when it is first used: importing the package costs next to nothing.
"""

from microsandbox._lazy import lazy_names

# Not lazily: the module, imported later, would take the place of the function version() below.
from microsandbox.version import VERSION

TYPE_CHECKING = False  # type checkers know the name; importing typing would take longer than all of this
if TYPE_CHECKING:
    from microsandbox._runtime import install, is_installed
    from microsandbox.agent import FLAG_SESSION_START, FLAG_SHUTDOWN, FLAG_TERMINAL, AgentClient, AgentStream
    from microsandbox.errors import (
        ExecFailedError,
        ExecTimeoutError,
        FilesystemError,
        ImageInUseError,
        ImageNotFoundError,
        ImagePullFailedError,
        InvalidConfigError,
        IoError,
        MetricsDisabledError,
        MetricsUnavailableError,
        MicrosandboxError,
        NetworkPolicyError,
        PathNotFoundError,
        SandboxAlreadyExistsError,
        SandboxNotFoundError,
        SandboxNotRunningError,
        SandboxStillRunningError,
        SecretViolationError,
        TlsError,
        UnsupportedOperationError,
        VolumeNotFoundError,
    )
    from microsandbox.events import (
        ExecEvent,
        ExitedEvent,
        LayerDownloadComplete,
        LayerDownloadProgress,
        LayerExtractComplete,
        LayerExtractProgress,
        LayerExtractStarted,
        LayerIndexComplete,
        LayerIndexStarted,
        PullComplete,
        PullProgress,
        Resolved,
        Resolving,
        StartedEvent,
        StderrEvent,
        StdoutEvent,
    )
    from microsandbox.image.public import (
        Image,
        ImageConfigDetail,
        ImageDetail,
        ImageHandle,
        ImageLayerDetail,
        ImagePruneReport,
    )
    from microsandbox.metrics.public import MetricsStream, all_sandbox_metrics
    from microsandbox.sandbox.exec import ExecHandle, ExecSink
    from microsandbox.sandbox.fs import FsReadStream, FsWriteSink, SandboxFsOps
    from microsandbox.sandbox.handle import SandboxHandle
    from microsandbox.sandbox.logs import LogStream
    from microsandbox.sandbox.pool import SandboxPool
    from microsandbox.sandbox.pull_session import PullSession
    from microsandbox.sandbox.sandbox import Sandbox
    from microsandbox.sandbox.ssh import SandboxSshOps, SftpClient, SshClient, SshOutput, SshServer
    from microsandbox.snapshot.public import Snapshot, SnapshotHandle
    from microsandbox.template.public import Template, TemplateInfo
    from microsandbox.types import (
        Action,
        DestGroup,
        Destination,
        Direction,
        DiskImageFormat,
        ExecOutput,
        ExitStatus,
        FsEntry,
        FsEntryKind,
        FsMetadata,
        GiB,
        HostPermissions,
        ImageSource,
        InitConfig,
        LogEntry,
        LogLevel,
        LogReadSource,
        LogSource,
        MiB,
        MountConfig,
        MountKind,
        Network,
        NetworkDestination,
        NetworkPolicy,
        Patch,
        PatchConfig,
        PortBinding,
        PortProtocol,
        Protocol,
        PullPolicy,
        RegistryAuth,
        Rlimit,
        RlimitResource,
        Rule,
        SandboxMetrics,
        SandboxStatus,
        SandboxStopResult,
        Secret,
        SecretEntry,
        SecretInjection,
        SecurityProfile,
        Size,
        StatVirtualization,
        Stdin,
        TlsConfig,
        ViolationAction,
        ViolationPolicy,
    )
    from microsandbox.volume.public import Volume, VolumeHandle
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "_runtime": "install is_installed",
            "agent": "AgentClient AgentStream FLAG_SESSION_START FLAG_SHUTDOWN FLAG_TERMINAL",
            "errors": (
                "ExecFailedError ExecTimeoutError FilesystemError ImageInUseError ImageNotFoundError "
                "ImagePullFailedError InvalidConfigError IoError MetricsDisabledError "
                "MetricsUnavailableError MicrosandboxError NetworkPolicyError PathNotFoundError "
                "SandboxAlreadyExistsError SandboxNotFoundError SandboxNotRunningError "
                "SandboxStillRunningError SecretViolationError TlsError UnsupportedOperationError "
                "VolumeNotFoundError"
            ),
            "events": (
                "ExecEvent ExitedEvent LayerDownloadComplete LayerDownloadProgress "
                "LayerExtractComplete LayerExtractProgress LayerExtractStarted LayerIndexComplete "
                "LayerIndexStarted PullComplete PullProgress Resolved Resolving StartedEvent "
                "StderrEvent StdoutEvent"
            ),
            "image.public": (
                "Image ImageConfigDetail ImageDetail ImageHandle ImageLayerDetail ImagePruneReport"
            ),
            "metrics.public": "MetricsStream all_sandbox_metrics",
            "sandbox.exec": "ExecHandle ExecSink",
            "sandbox.fs": "FsReadStream FsWriteSink SandboxFsOps",
            "sandbox.handle": "SandboxHandle",
            "sandbox.logs": "LogStream",
            "sandbox.pool": "SandboxPool",
            "sandbox.pull_session": "PullSession",
            "sandbox.sandbox": "Sandbox",
            "sandbox.ssh": "SandboxSshOps SftpClient SshClient SshOutput SshServer",
            "snapshot.public": "Snapshot SnapshotHandle",
            "template.public": "Template TemplateInfo",
            "types": (
                "Action DestGroup Destination Direction DiskImageFormat ExecOutput ExitStatus FsEntry "
                "FsEntryKind FsMetadata GiB HostPermissions ImageSource InitConfig LogEntry LogLevel "
                "LogReadSource LogSource MiB MountConfig MountKind Network NetworkDestination "
                "NetworkPolicy Patch PatchConfig PortBinding PortProtocol Protocol PullPolicy "
                "RegistryAuth Rlimit RlimitResource Rule SandboxMetrics SandboxStatus "
                "SandboxStopResult Secret SecretEntry SecretInjection SecurityProfile Size "
                "StatVirtualization Stdin TlsConfig ViolationAction ViolationPolicy"
            ),
            "volume.public": "Volume VolumeHandle",
        },
        submodules="agent errors events types _cli _microsandbox _runtime",
    )


def version() -> str:
    """The version of the public API: that of the microsandbox release this one follows."""
    return VERSION


__all__ = [
    "FLAG_SESSION_START",
    "FLAG_SHUTDOWN",
    "FLAG_TERMINAL",
    "Action",
    "AgentClient",
    "AgentStream",
    "DestGroup",
    "Destination",
    "Direction",
    "DiskImageFormat",
    "ExecEvent",
    "ExecFailedError",
    "ExecHandle",
    "ExecOutput",
    "ExecSink",
    "ExecTimeoutError",
    "ExitStatus",
    "ExitedEvent",
    "FilesystemError",
    "FsEntry",
    "FsEntryKind",
    "FsMetadata",
    "FsReadStream",
    "FsWriteSink",
    "GiB",
    "HostPermissions",
    "Image",
    "ImageConfigDetail",
    "ImageDetail",
    "ImageHandle",
    "ImageInUseError",
    "ImageLayerDetail",
    "ImageNotFoundError",
    "ImagePruneReport",
    "ImagePullFailedError",
    "ImageSource",
    "InitConfig",
    "InvalidConfigError",
    "IoError",
    "LayerDownloadComplete",
    "LayerDownloadProgress",
    "LayerExtractComplete",
    "LayerExtractProgress",
    "LayerExtractStarted",
    "LayerIndexComplete",
    "LayerIndexStarted",
    "LogEntry",
    "LogLevel",
    "LogReadSource",
    "LogSource",
    "LogStream",
    "MetricsDisabledError",
    "MetricsStream",
    "MetricsUnavailableError",
    "MiB",
    "MicrosandboxError",
    "MountConfig",
    "MountKind",
    "Network",
    "NetworkDestination",
    "NetworkPolicy",
    "NetworkPolicyError",
    "Patch",
    "PatchConfig",
    "PathNotFoundError",
    "PortBinding",
    "PortProtocol",
    "Protocol",
    "PullComplete",
    "PullPolicy",
    "PullProgress",
    "PullSession",
    "RegistryAuth",
    "Resolved",
    "Resolving",
    "Rlimit",
    "RlimitResource",
    "Rule",
    "Sandbox",
    "SandboxAlreadyExistsError",
    "SandboxFsOps",
    "SandboxHandle",
    "SandboxMetrics",
    "SandboxNotFoundError",
    "SandboxNotRunningError",
    "SandboxPool",
    "SandboxSshOps",
    "SandboxStatus",
    "SandboxStillRunningError",
    "SandboxStopResult",
    "Secret",
    "SecretEntry",
    "SecretInjection",
    "SecretViolationError",
    "SecurityProfile",
    "SftpClient",
    "Size",
    "Snapshot",
    "SnapshotHandle",
    "SshClient",
    "SshOutput",
    "SshServer",
    "StartedEvent",
    "StatVirtualization",
    "StderrEvent",
    "Stdin",
    "StdoutEvent",
    "Template",
    "TemplateInfo",
    "TlsConfig",
    "TlsError",
    "UnsupportedOperationError",
    "ViolationAction",
    "ViolationPolicy",
    "Volume",
    "VolumeHandle",
    "VolumeNotFoundError",
    "all_sandbox_metrics",
    "install",
    "is_installed",
    "version",
]
