"""create's keywords: what each accepts, what it becomes, and the words for what it refuses."""

from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from microsandbox import LogLevel, MountConfig, MountKind, PullPolicy, Volume
from microsandbox.errors import NotSupportedYetError
from microsandbox.sandbox.mounts import TmpfsMount
from microsandbox.sandbox.options import parse_create
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.store.config import Config, SandboxDefaults
from microsandbox.store.home import Home
from microsandbox.types import Image, ImageSource


def test_an_image_alone_gets_the_defaults_of_the_home(parse):
    options = parse()
    config = options.config
    assert (options.replace, options.replace_timeout, options.detached) == (False, 10.0, False)
    assert config.image == OciImage("alpine", 64)
    assert (config.name, config.cpus, config.memory_mib, config.log_level) == ("box", 2, 256, "info")
    assert config.tmpfs_mounts == (TmpfsMount("/tmp", 64),)
    assert config.pull_policy is PullPolicy.IF_MISSING
    assert (config.workdir, config.shell, config.hostname, config.user) == (None,) * 4
    assert (config.entrypoint, config.max_duration_secs, config.idle_timeout_secs) == (None,) * 3
    assert (config.env, config.labels, config.scripts) == ((), {}, {})


def test_every_default_of_a_sandbox_is_applied(tmp_path):
    given = {
        "cpus": 3, "memory_mib": 99, "upper_size_mib": 77, "shell": "/bin/bash", "workdir": "/srv",
        "metrics_sample_interval_ms": 250, "disable_metrics_sample": False,
    }  # fmt: skip
    assert given.keys() == set(SandboxDefaults.__struct_fields__)
    home = Home(tmp_path, Config(log_level="warn", sandbox_defaults=SandboxDefaults(**given)))
    config = parse_create("box", {"image": "alpine"}, home).config
    assert (config.cpus, config.memory_mib, config.image.upper_size_mib) == (3, 99, 77)
    assert (config.shell, config.workdir, config.log_level) == ("/bin/bash", "/srv", "warn")
    assert config.metrics_interval == 0.25
    config = parse_create("box", {"image": "alpine", "shell": "zsh", "workdir": "/", "cpus": 1}, home).config
    assert (config.shell, config.workdir, config.cpus) == ("zsh", "/", 1)
    off = Home(tmp_path, Config(sandbox_defaults=SandboxDefaults(disable_metrics_sample=True)))
    assert parse_create("box", {"image": "alpine"}, off).config.metrics_interval is None


def test_none_is_always_the_default(home, parse):
    from microsandbox.sandbox.options import CreateKeywords

    nothing = dict.fromkeys(CreateKeywords.__annotations__)
    assert parse_create("box", {**nothing, "image": "alpine"}, home) == parse()


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("memory", 1024, "memory_mib", 1024),
        ("memory", True, "memory_mib", 1),
        ("cpus", 255, "cpus", 255),
        ("workdir", "/srv", "workdir", "/srv"),
        ("shell", "/bin/bash", "shell", "/bin/bash"),
        ("security", "default", "name", "box"),
        ("hostname", "web", "hostname", "web"),
        ("user", "www:www", "user", "www:www"),
        ("entrypoint", ["a", "b"], "entrypoint", ("a", "b")),
        ("entrypoint", (), "entrypoint", ()),
        ("max_duration", 1.1, "max_duration_secs", 2),
        ("idle_timeout", 0, "idle_timeout_secs", 0),
        ("pause_after", 0.5, "pause_after_secs", 1),
        ("env", {"B": "2", "A": "1"}, "env", (("B", "2"), ("A", "1"))),
        ("labels", {"k": ""}, "labels", {"k": ""}),
        ("scripts", {"run.sh": "echo"}, "scripts", {"run.sh": "echo"}),
        ("pull_policy", "always", "pull_policy", PullPolicy.ALWAYS),
        ("pull_policy", "if_missing", "pull_policy", PullPolicy.IF_MISSING),
        ("pull_policy", "IF_MISSING", "pull_policy", PullPolicy.IF_MISSING),
        ("pull_policy", PullPolicy.NEVER, "pull_policy", PullPolicy.NEVER),
        ("log_level", "DEBUG", "log_level", "debug"),
        ("log_level", LogLevel.TRACE, "log_level", "trace"),
        ("network", {"policy": "none"}, "name", "box"),
    ],
)
def test_values_are_taken(parse, option, value, field, expected):
    found = getattr(parse(**{option: value}).config, field)
    assert found == expected
    if isinstance(expected, str) and option != "pull_policy":
        assert type(found) is str


@pytest.mark.parametrize(
    ("options", "replace", "timeout"),
    [
        ({"replace": True}, True, 10.0),
        ({"replace": False}, False, 10.0),
        ({"replace_with_timeout": 0}, True, 0.0),
        ({"replace_with_timeout": 2.5, "replace": False}, True, 2.5),
    ],
)
def test_a_replacement_timeout_implies_replacing(parse, options, replace, timeout):
    found = parse(**options)
    assert (found.replace, found.replace_timeout) == (replace, timeout)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"memory": -1}, OverflowError, "out of range integral type conversion attempted"),
        ({"memory": 1 << 32}, OverflowError, "out of range integral type conversion attempted"),
        ({"memory": 512.0}, TypeError, "'float' object cannot be interpreted as an integer"),
        ({"cpus": 256}, OverflowError, "out of range integral type conversion attempted"),
        ({"workdir": 1}, TypeError, "'int' object cannot be converted to 'PyString'"),
        ({"workdir": "\ud800"}, UnicodeEncodeError, None),
        ({"security": "x"}, ValueError, "invalid security profile: x. Expected: default, restricted"),
        ({"entrypoint": "sh"}, TypeError, "Can't extract `str` to `Vec`"),
        ({"entrypoint": {"sh"}}, TypeError, "'set' object cannot be converted to 'Sequence'"),
        ({"entrypoint": [1]}, TypeError, "'int' object cannot be converted to 'PyString'"),
        ({"init": 1}, TypeError, "init must be str, dict with 'cmd', or InitConfig"),
        ({"init": {}}, ValueError, "init dict requires 'cmd'"),
        (
            {"init": SimpleNamespace(_to_dict=lambda: 1)},
            TypeError,
            "init._to_dict() must return a dict",
        ),
        ({"replace": 1}, TypeError, "'int' object cannot be converted to 'PyBool'"),
        ({"replace_with_timeout": -1}, ValueError, "replace_with_timeout must be non-negative"),
        ({"max_duration": -0.1}, ValueError, "max_duration must be non-negative"),
        ({"max_duration": float("nan")}, ValueError, "max_duration must be non-negative"),
        ({"max_duration": float("inf")}, ValueError, "max_duration must be finite"),
        ({"idle_timeout": -1}, ValueError, "idle_timeout must be non-negative"),
        ({"idle_timeout": "5"}, TypeError, "must be real number, not str"),
        ({"pause_after": -1}, ValueError, "pause_after must be non-negative"),
        ({"env": [("A", "1")]}, TypeError, "'list' object cannot be converted to 'PyDict'"),
        ({"env": {"A": 1}}, TypeError, "'int' object cannot be converted to 'PyString'"),
        (
            {"pull_policy": "sometimes"},
            ValueError,
            "invalid pull_policy: sometimes. Expected: always, if-missing, never",
        ),
        ({"log_level": "Debug"}, ValueError, "invalid log_level: Debug"),
        ({"registry_auth": {}}, ValueError, "registry_auth.username required"),
        ({"registry_auth": {"username": "u"}}, ValueError, "registry_auth.password required"),
        ({"registry_auth": 1}, TypeError, "expected dict or object with _to_dict(), got int"),
        ({"volumes": []}, TypeError, "'list' object cannot be converted to 'PyDict'"),
        ({"volumes": {"/v": {}}}, ValueError, "mount must have one of: bind, named, tmpfs, disk"),
        (
            {"volumes": {"/v": {"tmpfs": False}}},
            ValueError,
            "mount must have one of: bind, named, tmpfs, disk",
        ),
        ({"volumes": {"/v": {"tmpfs": 1}}}, TypeError, "'int' object cannot be converted to 'PyBool'"),
        (
            {"volumes": {"/v": {"tmpfs": True, "read_only": True}}},
            TypeError,
            'unknown mount key: read_only (did you mean "readonly"?)',
        ),
        (
            {"volumes": {"/v": {"bind": "/h", "stat_virtualization": "lax"}}},
            ValueError,
            'invalid stat_virtualization "lax" (expected strict|relaxed|off)',
        ),
        (
            {"volumes": {"/v": {"bind": "/h", "host_permissions": "x"}}},
            ValueError,
            'invalid host_permissions "x" (expected private|mirror)',
        ),
        (
            {"volumes": {"/v": {"named": "n", "named_mode": "x"}}},
            ValueError,
            "invalid named volume mode: x",
        ),
        (
            {"volumes": {"/v": {"named": "n", "named_kind": "x"}}},
            ValueError,
            "invalid named volume kind: x",
        ),
        ({"volumes": {"/v": {"disk": "d", "format": "x"}}}, ValueError, "unknown disk image format: x"),
        (
            {"volumes": {"/v": MountConfig(MountKind.BIND)}},
            ValueError,
            "MountConfig kind=BIND requires bind=...",
        ),
        ({"patches": ()}, TypeError, "'tuple' object cannot be converted to 'PyList'"),
        ({"patches": [{}]}, ValueError, "patch.kind required"),
        ({"patches": [{"kind": "file"}]}, ValueError, "unknown patch kind: file"),
        ({"patches": [{"kind": "text", "path": "/x"}]}, ValueError, "content is required"),
        ({"detached": 1}, TypeError, "'int' object cannot be converted to 'PyBool'"),
        (
            {"memroy": 1},
            TypeError,
            "create() got an unexpected keyword argument 'memroy' (did you mean \"memory\"?)",
        ),
        ({"zzz": 1}, TypeError, "create() got an unexpected keyword argument 'zzz'"),
        # the first error in the documented order wins
        ({"detached": 1, "env": 1, "cpus": 300}, OverflowError, None),
        ({"detached": 1, "env": 1}, TypeError, "'int' object cannot be converted to 'PyDict'"),
    ],
)
def test_what_is_wrong_is_said_at_once(parse, options, error, text):
    with pytest.raises(error) as caught:
        parse(**options)
    assert text is None or str(caught.value) == text


def test_names_are_texts(parse):
    with pytest.raises(TypeError, match="argument 'name': 'int' object cannot be converted to 'PyString'"):
        parse(5)


# image= and snapshot=


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("python:3.12", OciImage("python:3.12", 64)),
        ("rootfs", OciImage("rootfs", 64)),
        (Image.oci("alpine"), OciImage("alpine", 64)),
        (Image.oci("alpine", upper_size_mib=9), OciImage("alpine", 9)),
        (SimpleNamespace(_to_image_str=lambda: "alpine"), OciImage("alpine", 64)),
    ],
)
def test_images_of_registries(home, image, expected):
    assert parse_create("box", {"image": image}, home).config.image == expected


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, ValueError, "image= or snapshot= is required"),
        ({"image": None}, ValueError, "image= or snapshot= is required"),
        ({"image": "a", "snapshot": "b"}, ValueError, "pass either image= or snapshot=, not both"),
        ({"image": 1}, TypeError, "image must be str, os.PathLike, or ImageSource"),
        (
            {"image": ImageSource("bind", _path="/", _upper_size_mib=1)},
            ValueError,
            "upper_size_mib is only valid for Image.oci(...)",
        ),
        (
            {"image": ImageSource("oci", _reference="a", _upper_size_mib=1, _fstype="ext4")},
            ValueError,
            "fstype and upper_size_mib cannot be set on the same ImageSource",
        ),
        ({"image": ImageSource("oci")}, ValueError, "invalid ImageSource: type=oci"),
        ({"snapshot": 1}, TypeError, "snapshot must be str or os.PathLike"),
        ({"snapshot": "/none/here"}, FileNotFoundError, "snapshot artifact not found: /none/here"),
    ],
)
def test_images_that_are_none(home, options, error, text):
    with pytest.raises(error) as caught:
        parse_create("box", options, home)
    assert str(caught.value) == text


def test_a_snapshot_by_name_is_looked_for_in_the_home(home):
    with pytest.raises(FileNotFoundError, match=f"snapshot artifact not found: {home.root}/snapshots/s1"):
        parse_create("box", {"snapshot": "s1"}, home)


@pytest.mark.parametrize(
    ("image", "feature"),
    [
        (".", "bind root file systems"),
        ("./rootfs", "bind root file systems"),
        ("/srv/rootfs", "bind root file systems"),
        ("../disk.qcow2", "disk image root file systems"),
        (Path("rootfs"), "bind root file systems"),
        (PurePosixPath("disk.raw"), "disk image root file systems"),
        (Image.bind("rootfs"), "bind root file systems"),
        (Image.disk("disk.raw"), "disk image root file systems"),
        (Image.disk("alpine", fstype="ext4"), "disk image root file systems"),
    ],
)
def test_local_root_file_systems_are_refused_and_never_taken_for_references(home, image, feature):
    with pytest.raises(NotSupportedYetError) as caught:
        parse_create("box", {"image": image}, home)
    assert caught.value.feature == feature


# mounts


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        ({"tmpfs": True}, TmpfsMount("/v")),
        ({"tmpfs": True, "size_mib": 5, "readonly": True}, TmpfsMount("/v", 5, readonly=True)),
        ({"bind": None, "tmpfs": True, "size_mib": None, "nodev": None}, TmpfsMount("/v")),
        (Volume.tmpfs(size_mib=7, nosuid=True), TmpfsMount("/v", 7, nosuid=True)),
        (MountConfig(MountKind.TMPFS, bind="ignored", noexec=True), TmpfsMount("/v", noexec=True)),
        (SimpleNamespace(tmpfs=True, size_mib=3, other="not ours"), TmpfsMount("/v", 3)),
    ],
)
def test_tmpfs_mounts(parse, mount, expected):
    assert parse(volumes={"/v": mount}).config.tmpfs_mounts == (expected, TmpfsMount("/tmp", 64))


def test_mount_options_are_spelled_as_mount_does():
    assert TmpfsMount("/v", None, True, True, True, True).options == ["ro", "noexec", "nosuid", "nodev"]
    assert TmpfsMount("/v").options == []


@pytest.mark.parametrize(
    ("memory", "size"), [(1, 1), (3, 1), (8, 2), (512, 128), (2048, 512), (100_000, 512)]
)
def test_the_implicit_tmp_is_a_quarter_of_the_memory_within_bounds(parse, memory, size):
    assert parse(memory=memory).config.tmpfs_mounts == (TmpfsMount("/tmp", size),)


@pytest.mark.parametrize("guest", ["/tmp", "/tmp/", "/tmp//"])
def test_there_is_no_implicit_tmp_where_one_was_asked_for(parse, guest):
    mounts = parse(volumes={guest: {"tmpfs": True, "size_mib": 1}}).config.tmpfs_mounts
    assert mounts == (TmpfsMount(guest, 1),)


def test_long_sandbox_names_give_host_names_that_linux_takes(parse):
    assert parse("é" * 60).config.guest_hostname == "é" * 32
    assert parse("x" + "é" * 60).config.guest_hostname == "x" + "é" * 31
    assert parse("box", hostname="web").config.guest_hostname == "web"
