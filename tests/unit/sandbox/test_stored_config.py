"""The stored configuration: the documented JSON; what is read back is what was written, without a guess."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from microsandbox.errors import InvalidConfigError, NotSupportedYetError
from microsandbox.sandbox.handoff import Init
from microsandbox.sandbox.mounts import TmpfsMount
from microsandbox.sandbox.options import ResourceLimit, SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.stored_config import dump_config, load_config, merge_image
from microsandbox.types import LogLevel, PullPolicy, RlimitResource, SecurityProfile

words = st.text(max_size=20)
counts = st.integers(0, 2**32 - 1)
texts = st.dictionaries(words, words, max_size=4)
pairs = st.lists(st.tuples(words, words), max_size=4).map(tuple)
mount = st.builds(
    TmpfsMount, words, st.none() | counts, st.booleans(), st.booleans(), st.booleans(), st.booleans()
)
configs = st.builds(
    SandboxConfig,
    name=words,
    image=st.builds(OciImage, words, counts),
    cpus=counts,
    memory_mib=counts,
    log_level=st.none() | st.sampled_from([level.value for level in LogLevel]),
    workdir=st.none() | words,
    shell=st.none() | words,
    hostname=st.none() | words,
    user=st.none() | words,
    entrypoint=st.none() | st.lists(words, max_size=3).map(tuple),
    cmd=st.none() | st.lists(words, max_size=3).map(tuple),
    env=pairs,
    labels=texts,
    scripts=texts,
    tmpfs_mounts=st.lists(mount, max_size=3).map(tuple),
    pull_policy=st.sampled_from(PullPolicy),
    max_duration_secs=st.none() | counts,
    idle_timeout_secs=st.none() | counts,
    pause_after_secs=st.none() | counts,
    security_profile=st.sampled_from([profile.value for profile in SecurityProfile]),
    init=st.none() | st.builds(Init, words, st.lists(words, max_size=3).map(tuple), pairs),
    rlimits=st.lists(
        st.builds(ResourceLimit, st.sampled_from([one.value for one in RlimitResource]), counts, counts),
        max_size=2,
    ).map(tuple),
    manifest_digest=st.none() | words,
)


@given(configs)
def test_what_is_read_back_is_what_was_written(config):
    assert load_config(dump_config(config)) == config


def test_the_document_is_that_of_microsandbox(parse):
    options = parse(
        env={"A": "1"},
        labels={"k": "v"},
        volumes={"/v": {"tmpfs": True, "nodev": True}},
        pull_policy="never",
        max_duration=9,
        log_level="warn",
    )
    document = json.loads(dump_config(options.config))
    network = document.pop("network")
    flags = {"readonly": False, "noexec": False, "nosuid": False, "nodev": False}
    assert document == {
        "name": "box",
        "image": {"Oci": {"reference": "alpine", "upper_size_mib": 64}},
        "cpus": 2,
        "memory_mib": 256,
        "log_level": "warn",
        "metrics_sample_interval_ms": 1000,
        "disable_metrics_sample": False,
        "workdir": None,
        "shell": None,
        "hostname": None,
        "user": None,
        "scripts": {},
        "labels": {"k": "v"},
        "env": [["A", "1"]],
        "rlimits": [],
        "mounts": [
            {"type": "Tmpfs", "guest": "/v", "size_mib": None, "options": {**flags, "nodev": True}},
            {"type": "Tmpfs", "guest": "/tmp", "size_mib": 64, "options": flags},
        ],
        "security_profile": "default",
        "patches": [],
        "entrypoint": None,
        "cmd": None,
        "init": None,
        "pull_policy": "Never",
        "policy": {"max_duration_secs": 9, "idle_timeout_secs": None},
        "manifest_digest": None,
    }
    assert network["enabled"] is False
    assert network["policy"] == {"default_egress": "deny", "default_ingress": "deny", "rules": []}
    assert set(network) == {
        "enabled", "interface", "ports", "policy", "dns", "tls", "secrets", "max_connections",
        "trust_host_cas",
    }  # fmt: skip


def test_what_microsandbox_does_not_know_is_written_only_if_it_was_asked_for(parse):
    document = json.loads(dump_config(parse(pause_after=5, idle_timeout=9).config))
    expected = {"max_duration_secs": None, "idle_timeout_secs": 9, "pause_after_secs": 5}
    assert document["policy"] == expected


def test_init_profile_and_limits_are_written_as_microsandbox_does(parse):
    config = parse(init={"cmd": "/i", "args": ["-x"], "env": {"K": "V"}}, security="restricted").config
    document = json.loads(dump_config(replace(config, rlimits=(ResourceLimit("nofile", 1, 2),))))
    assert document["init"] == {"cmd": "/i", "args": ["-x"], "env": [["K", "V"]]}
    assert document["security_profile"] == "restricted"
    assert document["rlimits"] == [{"resource": "Nofile", "soft": 1, "hard": 2}]


def changed(config, **values):
    return json.dumps({**json.loads(dump_config(config)), **values})


@pytest.mark.parametrize(
    "values",
    [
        {"cpus": "2"},
        {"cpus": True},
        {"image": 5},
        {"image": {"Oci": {"reference": "a"}}},
        {"mounts": [5]},
        {"mounts": [{"type": "Tmpfs", "guest": "/v"}]},
        {"env": [["A"]]},
        {"labels": []},
        {"pull_policy": "Sometimes"},
        {"policy": None},
        {"security_profile": "lax"},
        {"init": {"cmd": "auto"}},
        {"rlimits": [{"resource": "Files", "soft": 1, "hard": 1}]},
    ],
)
def test_a_damaged_document_is_one_error_with_advice(config, values):
    with pytest.raises(InvalidConfigError, match="is damaged .*remove the sandbox and create it again"):
        load_config(changed(config, **values))


@pytest.mark.parametrize("document", ["", "{", "[]", "null", "{}"])
def test_so_is_what_is_no_document(document):
    with pytest.raises(InvalidConfigError, match="is damaged"):
        load_config(document)


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ({"image": {"Bind": "/"}}, "bind and disk image root file systems"),
        ({"mounts": [{"type": "Bind"}]}, "mounts other than tmpfs"),
        ({"network": {"enabled": True}}, "network"),
    ],
)
def test_a_sandbox_is_not_started_with_less_than_its_document_says(config, values, feature):
    with pytest.raises(NotSupportedYetError) as caught:
        load_config(changed(config, **values))
    assert caught.value.feature == feature


# the image's defaults


def image(**config):
    defaults = {"env": [], "cmd": None, "entrypoint": None, "working_dir": None, "user": None, "labels": None}
    return SimpleNamespace(manifest_digest="sha256:1", config=SimpleNamespace(**{**defaults, **config}))


def test_an_image_without_defaults_only_pins_its_digest(config):
    assert merge_image(config, image()) == replace(config, manifest_digest="sha256:1")
    empty = image(cmd=[], entrypoint=[], working_dir="", user="", labels={})
    assert merge_image(config, empty) == replace(config, manifest_digest="sha256:1")


def test_the_image_s_defaults_are_taken_where_the_caller_said_nothing(config):
    merged = merge_image(
        config,
        image(
            env=["PATH=/bin", "A=1=2"],
            cmd=["sh"],
            entrypoint=["/init"],
            working_dir="/srv",
            user="www",
            labels={"k": "v"},
        ),
    )
    assert merged.env == (("PATH", "/bin"), ("A", "1=2"))
    assert (merged.cmd, merged.entrypoint) == (("sh",), ("/init",))
    assert (merged.workdir, merged.user, merged.labels) == ("/srv", "www", {"k": "v"})


def test_the_caller_s_choices_stay(config):
    mine = replace(
        config,
        env=(("A", "mine"),),
        entrypoint=(),
        workdir="/",
        user="root",
        labels={"k": "mine"},
    )
    merged = merge_image(
        mine,
        image(
            env=["A=1", "B=2"],
            entrypoint=["/init"],
            working_dir="/srv",
            user="www",
            labels={"k": "v", "l": "w", "sandbox.x": "no", "": "no"},
        ),
    )
    assert merged.env == (("B", "2"), ("A", "mine"))
    assert (merged.entrypoint, merged.workdir, merged.user) == ((), "/", "root")
    assert merged.labels == {"k": "mine", "l": "w"}


def test_what_an_image_cannot_set_is_left_out(config):
    assert merge_image(config, image(env=["", "A", "=B", "C=\0", "D="])).env == (("D", ""),)
