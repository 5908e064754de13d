"""The public list: every documented name is there, is what it says, and is visible to tools."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import microsandbox
import microsandbox.types
from microsandbox import errors, events

NAMES = """
    Sandbox SandboxHandle SandboxStopResult PullSession SandboxStatus SandboxSshOps SftpClient SshClient
    SshOutput SshServer
    AgentClient AgentStream FLAG_TERMINAL FLAG_SESSION_START FLAG_SHUTDOWN
    ExecHandle ExecOutput ExecSink LogEntry LogStream MetricsStream ExitStatus Stdin Rlimit RlimitResource
    ExecEvent StartedEvent StdoutEvent StderrEvent ExitedEvent PullProgress Resolving Resolved
    LayerDownloadProgress LayerDownloadComplete LayerExtractStarted LayerExtractProgress LayerExtractComplete
    LayerIndexStarted LayerIndexComplete PullComplete
    SandboxFsOps FsReadStream FsWriteSink FsEntry FsMetadata FsEntryKind
    Volume VolumeHandle MountConfig MountKind StatVirtualization HostPermissions
    Snapshot SnapshotHandle
    Network NetworkPolicy Rule Destination NetworkDestination Action Direction Protocol PortBinding
    PortProtocol DestGroup
    Secret SecretEntry SecretInjection TlsConfig ViolationAction ViolationPolicy
    Image ImageHandle ImageDetail ImageConfigDetail ImageLayerDetail ImagePruneReport ImageSource
    DiskImageFormat PullPolicy RegistryAuth
    LogLevel SecurityProfile LogSource LogReadSource Patch PatchConfig InitConfig
    SandboxMetrics all_sandbox_metrics
    Size MiB GiB
    MicrosandboxError InvalidConfigError SandboxNotFoundError SandboxNotRunningError
    SandboxAlreadyExistsError SandboxStillRunningError ExecTimeoutError ExecFailedError FilesystemError
    PathNotFoundError VolumeNotFoundError ImageNotFoundError ImageInUseError ImagePullFailedError
    NetworkPolicyError SecretViolationError TlsError IoError MetricsDisabledError MetricsUnavailableError
    UnsupportedOperationError
    install is_installed version
"""
OURS = ["SandboxPool", "Template", "TemplateInfo"]
DOCUMENTED = NAMES.split() + OURS


def test_the_list_is_the_documented_one():
    assert len(DOCUMENTED) == 118 + len(OURS)
    assert sorted(microsandbox.__all__) == sorted(DOCUMENTED)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_name_can_be_imported(name):
    assert getattr(microsandbox, name) is getattr(microsandbox, name)
    assert name in dir(microsandbox)


@pytest.mark.parametrize("package", [microsandbox, microsandbox.types])
def test_what_type_checkers_see_is_what_is_there(package):
    """The imports under TYPE_CHECKING, which nothing executes, lead to the same objects."""
    tree = ast.parse(Path(package.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for block in blocks:
        for node in block.body:
            if isinstance(node, ast.ImportFrom):
                seen |= {alias.name: node.module for alias in node.names}
    assert set(package.__all__) - set(seen) == ({"version"} if package is microsandbox else set())
    for name, module in seen.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)


def test_the_types_module_has_more_than_the_package():
    for name in ("DnsConfig", "NetworkDestinationLike", "violation_policy_to_dict", "Image"):
        assert getattr(microsandbox.types, name) is not None
        assert name in dir(microsandbox.types)
    assert microsandbox.types.PullPolicy is microsandbox.PullPolicy


def test_modules_are_attributes_as_after_an_eager_import():
    for name in ("agent", "errors", "events", "types"):
        assert getattr(microsandbox, name) is importlib.import_module(f"microsandbox.{name}")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'microsandbox' has no attribute 'Sandbocks'"):
        _ = microsandbox.Sandbocks


def test_the_version_is_that_of_the_api_also_after_its_module_was_imported():
    importlib.import_module("microsandbox.version")
    assert microsandbox.version() == "0.5.6"


def test_constants():
    assert (microsandbox.MiB, microsandbox.GiB) == (1048576, 1073741824)
    flags = microsandbox.FLAG_TERMINAL, microsandbox.FLAG_SESSION_START, microsandbox.FLAG_SHUTDOWN
    assert flags == (1, 2, 4)
    assert all(type(flag) is int for flag in flags)


def test_every_documented_error_has_its_code_and_the_common_base():
    for name in DOCUMENTED:
        value = getattr(microsandbox, name) if name in vars(errors) else None
        if value is not None:
            assert issubclass(value, microsandbox.MicrosandboxError)
    assert microsandbox.ImageInUseError.code == "image-in-use"
    assert microsandbox.MicrosandboxError.code == "microsandbox-error"


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if inspect.isclass(vars(events).get(name))])
def test_event_classes_are_frozen_values(name):
    cls = getattr(events, name)
    fields = list(cls.__dataclass_fields__)
    event = cls(*range(len(fields)))
    with pytest.raises(AttributeError):
        setattr(event, fields[0], 1)
    assert not hasattr(event, "__dict__")
    assert event == cls(*range(len(fields)))


@pytest.mark.parametrize(
    "name",
    [
        "LogStream", "MetricsStream", "SandboxSshOps", "SftpClient", "Snapshot", "SnapshotHandle",
        "SshClient", "SshOutput", "SshServer", "Template", "Volume", "VolumeHandle",
    ],
)  # fmt: skip
def test_what_only_an_operation_returns_has_no_constructor(name):
    with pytest.raises(TypeError, match=f"No constructor defined for {name}"):
        getattr(microsandbox, name)()


def operations():
    m = microsandbox
    yield "named volumes", lambda: m.Volume.create("v")
    yield "named volumes", lambda: m.Volume.get("v")
    yield "named volumes", lambda: m.Volume.list()
    yield "named volumes", lambda: m.Volume.remove("v")
    yield "snapshots", lambda: m.Snapshot.create("s", name="n")
    yield "snapshots", lambda: m.Snapshot.open("n")
    yield "snapshots", lambda: m.Snapshot.list()
    yield "snapshots", lambda: m.Snapshot.import_("a.tar")


@pytest.mark.parametrize(("feature", "operation"), list(operations()))
async def test_operations_of_later_releases_name_their_feature(feature, operation):
    with pytest.raises(microsandbox.UnsupportedOperationError) as caught:
        await operation()
    assert caught.value.feature == feature


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({"kind": "tape"}, "unknown volume kind: tape"),
        ({"kind": "disk"}, "size_mib is required with kind='disk'"),
        (
            {"kind": "disk", "size_mib": 1, "quota_mib": 1},
            "disk named volumes do not support .quota(...)",
        ),
        (
            {"size_mib": 1},
            "size_mib is only supported with kind='disk' until directory quotas are enforced",
        ),
        ({"name": ""}, "volume name must not be empty"),
        (
            {"name": ".x"},
            "volume name must start with an alphanumeric character and contain only alphanumeric characters, "
            "dots, hyphens, and underscores: .x",
        ),
    ],
)
async def test_volumes_that_cannot_be_are_refused_for_that(options, detail):
    with pytest.raises(microsandbox.InvalidConfigError) as caught:
        await microsandbox.Volume.create(**{"name": "v", **options})
    assert caught.value.detail == detail


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Snapshot.create: name= or path= is required"),
        ({"name": "n", "path": "p"}, "Snapshot.create: pass either name= or path=, not both"),
    ],
)
async def test_snapshots_need_one_place(options, text):
    with pytest.raises(ValueError, match="Snapshot.create") as caught:
        await microsandbox.Snapshot.create("s", **options)
    assert str(caught.value) == text


def test_the_native_module_s_names_are_there():
    native = importlib.import_module("microsandbox._microsandbox")
    assert native.Sandbox is microsandbox.Sandbox
    assert native.PyAgentClient is microsandbox.AgentClient
    assert native.ExecEvent is microsandbox.types.ExecStreamEvent
    assert inspect.isclass(native.VolumeFs)
    with pytest.raises(AttributeError):
        _ = native.nothing
