"""Value types and factories: fields, defaults, and the plain form in which they reach the parser."""

import dataclasses

import pytest

from microsandbox import types as t


def positional(cls):
    return [field.name for field in dataclasses.fields(cls)]


@pytest.mark.parametrize(
    ("enum", "values"),
    [
        (t.PullPolicy, ["always", "if-missing", "never"]),
        (t.LogLevel, ["trace", "debug", "info", "warn", "error"]),
        (t.SecurityProfile, ["default", "restricted"]),
        (t.SandboxStatus, ["running", "stopped", "crashed", "draining", "paused"]),
        (t.Action, ["allow", "deny"]),
        (t.Direction, ["egress", "ingress", "any"]),
        (t.Protocol, ["tcp", "udp", "icmpv4", "icmpv6"]),
        (t.PortProtocol, ["tcp", "udp"]),
        (
            t.DestGroup,
            ["public", "loopback", "private", "link-local", "metadata", "multicast", "host"],
        ),
        (t.ViolationAction, ["block", "block-and-log", "block-and-terminate", "passthrough"]),
        (t.MountKind, ["bind", "named", "tmpfs", "disk"]),
        (t.StatVirtualization, ["strict", "relaxed", "off"]),
        (t.HostPermissions, ["private", "mirror"]),
        (t.FsEntryKind, ["file", "directory", "symlink", "other"]),
        (t.DiskImageFormat, ["qcow2", "raw", "vmdk"]),
        (
            t.RlimitResource,
            [
                *(
                    "cpu",
                    "fsize",
                    "data",
                    "stack",
                    "core",
                    "rss",
                    "nproc",
                    "nofile",
                    "memlock",
                    "as",
                    "locks",
                ),
                *("sigpending", "msgqueue", "nice", "rtprio", "rttime"),
            ],
        ),
    ],
)
def test_enums_are_texts(enum, values):
    assert [str(member) for member in enum] == values
    for value in values:
        assert getattr(enum, value.upper().replace("-", "_")) == value


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (
            t.MountConfig,
            "kind bind named named_mode named_kind quota_mib size_mib readonly noexec nosuid nodev disk "
            "format fstype stat_virtualization host_permissions",
        ),
        (t.PatchConfig, "kind path content src dst target link mode replace"),
        (
            t.SecretEntry,
            "env_var value allow_hosts allow_host_patterns placeholder require_tls on_violation injection",
        ),
        (t.SecretInjection, "headers basic_auth query_params body"),
        (
            t.ViolationPolicy,
            "fallback passthrough_hosts passthrough_host_patterns passthrough_all_hosts",
        ),
        (t.NetworkDestination, "kind value"),
        (t.Rule, "action direction destination protocol port"),
        (t.NetworkPolicy, "default_egress default_ingress rules"),
        (t.TlsConfig, "bypass verify_upstream intercepted_ports block_quic ca_cert ca_key ca_cn"),
        (t.DnsConfig, "rebind_protection nameservers query_timeout_ms"),
        (t.PortBinding, "host_port guest_port bind protocol"),
        (
            t.Network,
            "policy ports deny_domains deny_domain_suffixes dns tls ipv4_pool ipv6_pool max_connections "
            "on_secret_violation trust_host_cas",
        ),
        (t.InitConfig, "cmd args env"),
        (t.RegistryAuth, "username password"),
        (t.ImageSource, "_type _path _reference _upper_size_mib _fstype _format"),
        (t.Rlimit, "resource soft hard"),
        (t.Stdin, "_mode _data"),
        (t.ExitStatus, "code success"),
        (t.Size, "bytes"),
    ],
)
def test_fields_are_positional_in_this_order_and_frozen(cls, fields):
    assert positional(cls) == fields.split()
    assert "__slots__" in vars(cls)
    missing = dataclasses.MISSING
    required = [
        f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing
    ]
    instance = cls(**dict.fromkeys(required, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, positional(cls)[0], None)


def test_sizes():
    assert (t.Size.mib(3).bytes, t.Size.gib(2).bytes) == (3 << 20, 2 << 30)
    assert t.Size((5 << 20) - 1).mib_count == 4


@pytest.mark.parametrize("name", ["nofile", "cpu", "nproc", "fsize", "memlock", "stack"])
def test_limits_have_equal_bounds_unless_told_apart(name):
    assert getattr(t.Rlimit, name)(7)._to_dict() == {"resource": name, "soft": 7, "hard": 7}
    assert t.Rlimit.as_(soft=1, hard=2)._to_dict() == {"resource": "as", "soft": 1, "hard": 2}


def test_stdin():
    assert t.Stdin.null() == t.Stdin("null")
    assert t.Stdin.pipe() == t.Stdin("pipe", None)
    assert t.Stdin.bytes(b"x") == t.Stdin("bytes", b"x")


# the plain forms

FLAGS = {"readonly": False, "noexec": False, "nosuid": False, "nodev": False}
K = t.MountKind


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (t.InitConfig("auto"), {"cmd": "auto"}),
        (t.InitConfig("/i", ("a",), {"K": "V"}), {"cmd": "/i", "args": ["a"], "env": {"K": "V"}}),
        (t.RegistryAuth.basic("u", "p"), {"username": "u", "password": "p"}),
        (t.MountConfig(K.BIND, "/h", size_mib=5, disk="no"), {**FLAGS, "bind": "/h"}),
        (
            t.MountConfig(
                K.BIND,
                "/h",
                readonly=True,
                stat_virtualization=t.StatVirtualization.OFF,
                host_permissions=t.HostPermissions.MIRROR,
            ),
            {
                **FLAGS,
                "readonly": True,
                "bind": "/h",
                "stat_virtualization": "off",
                "host_permissions": "mirror",
            },
        ),
        (t.MountConfig(K.NAMED, named="n"), {**FLAGS, "named": "n"}),
        (
            t.MountConfig(K.NAMED, None, "n", "create", "disk", 1, 2),
            {
                **FLAGS,
                "named": "n",
                "named_mode": "create",
                "named_kind": "disk",
                "size_mib": 2,
                "quota_mib": 1,
            },
        ),
        (t.MountConfig(K.TMPFS), {**FLAGS, "tmpfs": True}),
        (t.MountConfig(K.TMPFS, size_mib=0), {**FLAGS, "tmpfs": True, "size_mib": 0}),
        (
            t.MountConfig(K.DISK, disk="d", format=t.DiskImageFormat.RAW, fstype="ext4"),
            {**FLAGS, "disk": "d", "format": "raw", "fstype": "ext4"},
        ),
        (t.Patch.text("/p", "c"), {"kind": "text", "path": "/p", "content": "c"}),
        (
            t.Patch.text("/p", "", mode=0, replace=True),
            {"kind": "text", "path": "/p", "content": "", "mode": 0, "replace": True},
        ),
        (t.Patch.mkdir("/p", mode=0o700), {"kind": "mkdir", "path": "/p", "mode": 0o700}),
        (t.Patch.append("/p", "c"), {"kind": "append", "path": "/p", "content": "c"}),
        (t.Patch.copy_file("s", "d"), {"kind": "copy_file", "src": "s", "dst": "d"}),
        (
            t.Patch.copy_dir("s", "d", replace=True),
            {"kind": "copy_dir", "src": "s", "dst": "d", "replace": True},
        ),
        (t.Patch.symlink("t", "l"), {"kind": "symlink", "target": "t", "link": "l"}),
        (t.Patch.remove("/p"), {"kind": "remove", "path": "/p"}),
        (t.SecretInjection(), {}),
        (t.SecretInjection(headers=False, body=True), {"headers": False, "body": True}),
        (t.Secret.env("K", value="v"), {"env_var": "K", "value": "v"}),
        (
            t.Secret.env(
                "K",
                value="v",
                allow_hosts=["h"],
                allow_host_patterns=["*.h"],
                placeholder="P",
                require_tls=False,
                on_violation=t.ViolationAction.BLOCK,
                injection=t.SecretInjection(query_params=True),
            ),
            {
                "env_var": "K",
                "value": "v",
                "allow_hosts": ["h"],
                "allow_host_patterns": ["*.h"],
                "placeholder": "P",
                "require_tls": False,
                "on_violation": "block",
                "injection": {"query_params": True},
            },
        ),
        (
            t.Secret.env("K", value="v", on_violation=t.ViolationPolicy.passthrough(hosts=["h"])),
            {"env_var": "K", "value": "v", "on_violation": {"passthrough": {"hosts": ["h"]}}},
        ),
        (t.ViolationPolicy.block(), "block"),
        (t.ViolationPolicy.block_and_log(), "block-and-log"),
        (t.ViolationPolicy.block_and_terminate(), "block-and-terminate"),
        (t.ViolationPolicy.passthrough(), "block-and-log"),
        (
            t.ViolationPolicy.passthrough(host_patterns=["*.h"], all_hosts=True),
            {"passthrough": {"host_patterns": ["*.h"], "all_hosts": True}},
        ),
        (t.Destination.any(), {"destination_kind": "any"}),
        (t.Destination.group(t.DestGroup.HOST), {"destination_kind": "group", "destination": "host"}),
        (t.NetworkPolicy(), {"default_egress": "deny", "default_ingress": "allow"}),
        (
            t.NetworkPolicy(
                t.Action.ALLOW,
                rules=[
                    t.Rule.deny(port=25, protocol=t.Protocol.TCP),
                    t.Rule.allow(direction=t.Direction.ANY, destination="x.y"),
                    t.Rule(t.Action.DENY, destination=t.Destination.ip("1.1.1.1"), port="1-2"),
                ],
            ),
            {
                "default_egress": "allow",
                "default_ingress": "allow",
                "rules": [
                    {"action": "deny", "direction": "egress", "protocol": "tcp", "port": "25"},
                    {"action": "allow", "direction": "any", "destination": "x.y"},
                    {
                        "action": "deny",
                        "direction": "egress",
                        "destination_kind": "ip",
                        "destination": "1.1.1.1",
                        "port": "1-2",
                    },
                ],
            },
        ),
        (t.TlsConfig(), {}),
        (
            t.TlsConfig(["b"], False, (443, 8443), False, "c", "k", "n"),
            {
                "bypass": ["b"],
                "verify_upstream": False,
                "intercepted_ports": [443, 8443],
                "block_quic": False,
                "ca_cert": "c",
                "ca_key": "k",
                "ca_cn": "n",
            },
        ),
        (t.TlsConfig(block_quic=True), {"block_quic": True}),
        (t.DnsConfig(), {}),
        (
            t.DnsConfig(False, ("1.1.1.1",), 0),
            {"rebind_protection": False, "nameservers": ["1.1.1.1"], "query_timeout_ms": 0},
        ),
        (
            t.PortBinding.tcp(1, 2),
            {"host_port": 1, "guest_port": 2, "bind": "127.0.0.1", "protocol": "tcp"},
        ),
        (
            t.PortBinding.udp(1, 2, bind="::1"),
            {"host_port": 1, "guest_port": 2, "bind": "::1", "protocol": "udp"},
        ),
        (t.Network(), {}),
        (t.Network.none(), {"policy": "none"}),
        (t.Network.public_only(), {"policy": "public_only"}),
        (t.Network.allow_all(), {"policy": "allow_all"}),
        (t.Network(dns=t.DnsConfig(), tls=t.TlsConfig()), {"tls": {}}),
        (
            t.Network(
                policy=t.NetworkPolicy(),
                ports=[t.PortBinding.tcp(1, 2)],
                deny_domains=("d",),
                deny_domain_suffixes=("s",),
                dns=t.DnsConfig(False),
                ipv4_pool="4",
                ipv6_pool="6",
                max_connections=0,
                on_secret_violation=t.ViolationAction.BLOCK,
                trust_host_cas=False,
            ),
            {
                "custom_policy": {"default_egress": "deny", "default_ingress": "allow"},
                "ports": [{"host_port": 1, "guest_port": 2, "bind": "127.0.0.1", "protocol": "tcp"}],
                "deny_domains": ["d"],
                "deny_domain_suffixes": ["s"],
                "dns": {"rebind_protection": False},
                "ipv4_pool": "4",
                "ipv6_pool": "6",
                "max_connections": 0,
                "on_secret_violation": "block",
                "trust_host_cas": False,
            },
        ),
        (t.Network(ports={8080: 80}), {"ports": {8080: 80}}),
    ],
)
def test_plain_forms(value, expected):
    found = value._to_dict()
    assert found == expected
    assert all(type(key) is str for key in found) if isinstance(found, dict) else type(found) is str


def test_name_resolution_takes_two_rules():
    udp, tcp = t.Rule.allow_dns()
    host = t.Destination.group("host")
    assert udp == t.Rule(t.Action.ALLOW, t.Direction.EGRESS, host, t.Protocol.UDP, 53)
    assert tcp == t.Rule(t.Action.ALLOW, t.Direction.EGRESS, host, t.Protocol.TCP, 53)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (t.ViolationAction.PASSTHROUGH, "passthrough"),
        ("block", "block"),
        (t.ViolationPolicy.passthrough(all_hosts=True), {"passthrough": {"all_hosts": True}}),
    ],
)
def test_a_violation_policy_or_action_has_a_plain_form(policy, expected):
    assert t.violation_policy_to_dict(policy) == expected


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        (t.MountConfig(K.BIND), "MountConfig kind=BIND requires bind=..."),
        (t.MountConfig(K.NAMED), "MountConfig kind=NAMED requires named=..."),
        (t.MountConfig(K.DISK), "MountConfig kind=DISK requires disk=..."),
        (t.MountConfig("tape"), "unknown MountKind: 'tape'"),
        (
            t.MountConfig(K.TMPFS, stat_virtualization=t.StatVirtualization.STRICT),
            "stat_virtualization/host_permissions are only valid for BIND/NAMED mounts (got kind=tmpfs)",
        ),
        (
            t.MountConfig(K.DISK, disk="d", host_permissions=t.HostPermissions.PRIVATE),
            "stat_virtualization/host_permissions are only valid for BIND/NAMED mounts (got kind=disk)",
        ),
    ],
)
def test_mounts_that_cannot_be_say_so_when_they_are_used(mount, text):
    with pytest.raises(ValueError, match="Mount|mounts") as caught:
        mount._to_dict()
    assert str(caught.value) == text


def test_a_mount_kind_may_be_its_text():
    assert t.MountConfig("tmpfs")._to_dict() == {**FLAGS, "tmpfs": True}


def test_image_sources():
    assert t.Image.oci("a", upper_size_mib=5) == t.ImageSource("oci", None, "a", 5)
    assert t.Image.bind("/r") == t.ImageSource("bind", "/r")
    assert t.Image.disk("d.raw", fstype="ext4") == t.ImageSource("disk", "d.raw", None, None, "ext4")
    texts = [source._to_image_str() for source in (t.Image.oci("a"), t.Image.bind("/r"), t.Image.disk("d"))]
    assert texts == ["a", "/r", "d"]
    with pytest.raises(ValueError, match=r"^invalid ImageSource: type=tape$"):
        t.ImageSource("tape", "/x")._to_image_str()


def test_secrets_are_not_shown():
    assert "hush" not in repr(t.Secret.env("K", value="hush"))
    assert "hush" not in repr(t.RegistryAuth("u", "hush"))


def test_output_is_bytes_and_strict_text():
    output = t.ExecOutput(0, b"\xc3\xa9", b"\xff")
    assert (output.success, output.stdout_text) == (True, "é")
    assert not t.ExecOutput(-1, b"", b"").success
    with pytest.raises(UnicodeDecodeError):
        _ = output.stderr_text


def test_log_entries():
    entry = t.LogEntry(1.5, "stdout", 3, "abc", b"a\xff")
    assert entry.text() == "a\ufffd"
    assert repr(entry) == 'LogEntry(source="stdout", session_id=Some(3), timestamp_ms=1.5, len=2)'
    assert "session_id=None" in repr(t.LogEntry(1.5, "system", None, "", b""))
