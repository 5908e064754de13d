"""Enums, frozen values and factories of the public API, one module a subject.

Loaded one by one when they are used: building all of these classes takes 30 ms.
"""

from typing import TYPE_CHECKING

from microsandbox._lazy import lazy_names

if TYPE_CHECKING:
    from microsandbox.types.choices import LogLevel, PullPolicy, SandboxStatus, SecurityProfile
    from microsandbox.types.execution import (
        ExecOutput,
        ExecStreamEvent,
        ExitStatus,
        Rlimit,
        RlimitResource,
        Stdin,
    )
    from microsandbox.types.files import FsEntry, FsEntryKind, FsMetadata
    from microsandbox.types.images import Image, ImageSource, RegistryAuth
    from microsandbox.types.mounts import (
        DiskImageFormat,
        HostPermissions,
        MountConfig,
        MountKind,
        StatVirtualization,
    )
    from microsandbox.types.network import (
        Action,
        DestGroup,
        Destination,
        Direction,
        DnsConfig,
        Network,
        NetworkDestination,
        NetworkDestinationLike,
        NetworkPolicy,
        PortBinding,
        PortProtocol,
        Protocol,
        Rule,
        TlsConfig,
    )
    from microsandbox.types.observation import LogEntry, LogReadSource, LogSource, SandboxMetrics
    from microsandbox.types.patches import Patch, PatchConfig
    from microsandbox.types.sandbox import GiB, InitConfig, MiB, SandboxStopResult, Size
    from microsandbox.types.secrets import (
        Secret,
        SecretEntry,
        SecretInjection,
        ViolationAction,
        ViolationPolicy,
        violation_policy_to_dict,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "choices": "LogLevel PullPolicy SandboxStatus SecurityProfile",
            "execution": "ExecOutput ExecStreamEvent ExitStatus Rlimit RlimitResource Stdin",
            "files": "FsEntry FsEntryKind FsMetadata",
            "images": "Image ImageSource RegistryAuth",
            "mounts": "DiskImageFormat HostPermissions MountConfig MountKind StatVirtualization",
            "network": (
                "Action DestGroup Destination Direction DnsConfig Network NetworkDestination "
                "NetworkDestinationLike NetworkPolicy PortBinding PortProtocol Protocol Rule "
                "TlsConfig"
            ),
            "observation": "LogEntry LogReadSource LogSource SandboxMetrics",
            "patches": "Patch PatchConfig",
            "sandbox": "GiB InitConfig MiB SandboxStopResult Size",
            "secrets": (
                "Secret SecretEntry SecretInjection ViolationAction ViolationPolicy violation_policy_to_dict"
            ),
        },
    )

__all__ = [
    "Action",
    "DestGroup",
    "Destination",
    "Direction",
    "DiskImageFormat",
    "DnsConfig",
    "ExecOutput",
    "ExecStreamEvent",
    "ExitStatus",
    "FsEntry",
    "FsEntryKind",
    "FsMetadata",
    "GiB",
    "HostPermissions",
    "Image",
    "ImageSource",
    "InitConfig",
    "LogEntry",
    "LogLevel",
    "LogReadSource",
    "LogSource",
    "MiB",
    "MountConfig",
    "MountKind",
    "Network",
    "NetworkDestination",
    "NetworkDestinationLike",
    "NetworkPolicy",
    "Patch",
    "PatchConfig",
    "PortBinding",
    "PortProtocol",
    "Protocol",
    "PullPolicy",
    "RegistryAuth",
    "Rlimit",
    "RlimitResource",
    "Rule",
    "SandboxMetrics",
    "SandboxStatus",
    "SandboxStopResult",
    "Secret",
    "SecretEntry",
    "SecretInjection",
    "SecurityProfile",
    "Size",
    "StatVirtualization",
    "Stdin",
    "TlsConfig",
    "ViolationAction",
    "ViolationPolicy",
    "violation_policy_to_dict",
]
