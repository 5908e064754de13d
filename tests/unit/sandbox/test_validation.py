"""What a sandbox cannot be: one text for each, and which comes first."""

import pytest
from msgspec.structs import replace

from microsandbox.agent.protocol import MessageType, encode
from microsandbox.errors import InvalidConfigError
from microsandbox.sandbox.boot import _boot_config
from microsandbox.sandbox.handoff import Init
from microsandbox.sandbox.mounts import TmpfsMount
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.validation import (
    MAX_BOOT_BYTES,
    MAX_SCRIPT_BYTES,
    MAX_VARIABLES,
    validate,
    validate_merged,
)


def mounts(*guests):
    return {"tmpfs_mounts": tuple(TmpfsMount(guest) for guest in guests)}


def test_an_ordinary_sandbox_is_fine(config):
    validate(
        replace(
            config,
            **mounts("/tmp", "/a", "/a/b"),
            env=(("A", "="),),
            labels={"team": "", "sandboxes": "x"},
            scripts={"a/run": "x", "b": ""},
            hostname="h" * 64,
            pause_after_secs=5,
            idle_timeout_secs=6,
        )
    )


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"env": (("MSB_X", ""),)}, 'environment variable "MSB_X" uses the reserved MSB_ prefix'),
        (mounts("a"), "guest mount path must be absolute: a"),
        (mounts("/"), "cannot mount a volume at guest root /"),
        (mounts("//"), "cannot mount a volume at guest root /"),
        (mounts("/a/.."), "cannot mount a volume at guest root /"),
        (mounts("/a:b"), "guest mount path must not contain ':', ';', or ',': /a:b"),
        (mounts("/a,b"), "guest mount path must not contain ':', ';', or ',': /a,b"),
        (mounts("/a", "/a/"), "multiple volumes cannot mount the same guest path: /a/"),
        (mounts("/a", "//a"), "multiple volumes cannot mount the same guest path: //a"),
        ({"name": ""}, "sandbox name is required"),
        ({"name": "x" * 129}, "sandbox name is too long: 129 bytes (max 128)"),
        ({"cpus": 0}, "cpus must be greater than 0"),
        ({"memory_mib": 0}, "memory must be greater than 0"),
        ({"image": OciImage("", 1)}, "image source is required"),
        ({"image": OciImage("a", 0)}, "oci upper_size must be greater than 0"),
        ({"labels": {"": "x"}}, "label key must not be empty"),
        ({"labels": {"sandbox.x": ""}}, "label key 'sandbox.x' uses reserved prefix 'sandbox.'"),
        ({"labels": {"microsandbox.": ""}}, "label key 'microsandbox.' uses reserved prefix 'microsandbox.'"),
        ({"labels": {"service.a": ""}}, "label key 'service.a' uses reserved prefix 'service.'"),
        ({"scripts": {"a/": ""}}, 'script name "a/" does not end in a file name'),
        ({"scripts": {"..": ""}}, 'script name ".." does not end in a file name'),
        (
            {"scripts": {"a/run": "", "b/run": ""}},
            'scripts "a/run" and "b/run" would be the same file "run"',
        ),
        ({"scripts": {"a": "x" * MAX_SCRIPT_BYTES}}, "scripts are larger than 3 MiB together"),
        ({"hostname": "h" * 65}, "hostname is too long: 65 bytes (max 64)"),
        ({"user": "a\0"}, "user must not contain a NUL byte: 'a\\x00'"),
        ({"pause_after_secs": 0}, "pause_after must be greater than 0"),
        (
            {"pause_after_secs": 5, "idle_timeout_secs": 5},
            "pause_after must be shorter than idle_timeout, got 5 s and 5 s",
        ),
        # in order
        ({"cpus": 0, "memory_mib": 0, "labels": {"": ""}}, "cpus must be greater than 0"),
        ({"name": "", "cpus": 0}, "sandbox name is required"),
        ({"name": "", **mounts("a")}, "guest mount path must be absolute: a"),
    ],
)
def test_what_is_wrong_is_said(config, change, detail):
    with pytest.raises(InvalidConfigError) as caught:
        validate(replace(config, **change))
    assert caught.value.detail == detail
    assert str(caught.value) == f"invalid config: {detail}"


@pytest.mark.parametrize("pair", [("", "v"), ("A=B", "v"), ("A\0", "v"), ("A", "\0")])
def test_environment_variables_that_no_system_has_are_refused(config, pair):
    with pytest.raises(InvalidConfigError, match="cannot be set"):
        validate(replace(config, env=(pair,)))


def variables(count, size=0, prefix="V"):
    return tuple((f"{prefix}{number:04}", "x" * size) for number in range(count))


def test_variables_are_counted_with_those_of_the_image_and_the_init(config):
    full = replace(config, env=variables(MAX_VARIABLES))
    validate_merged(full)
    validate_merged(replace(full, init=Init("auto", env=(("V0000", "another"),))))
    for more in (
        replace(full, env=(*full.env, ("A", ""))),
        replace(full, init=Init("auto", env=(("A", ""),))),
    ):
        with pytest.raises(
            InvalidConfigError, match="^invalid config: 4097 environment .* too many .max 4096"
        ):
            validate_merged(more)


def filled(config, spare):
    """As much of everything as there may be, in as many pieces, and ``spare`` bytes less than the limit."""
    init = Init("/i", tuple("a" for _ in range(4095)), variables(2048, 16, "I"))
    env, tmpfs = (
        variables(2048, 16),
        tuple(TmpfsMount(f"/{number:02}".ljust(4000, "m")) for number in range(64)),
    )
    scripts = {f"{number:03}": "" for number in range(511)}
    taken = 2 + 4095 + 4096 * (5 + 1 + 16) + 64 * 4000 + 511 * 3
    scripts["last"] = "x" * (MAX_BOOT_BYTES - taken - 4 - spare)
    return replace(config, init=init, env=env, tmpfs_mounts=tmpfs, scripts=scripts)


def test_all_that_a_guest_is_told_fits_into_one_message(config):
    most = filled(config, 0)
    validate_merged(most)
    told = {**_boot_config(most, "0" * 32), "unix_time_nanos": 2**62, "entropy": bytes(64)}
    encode(0, MessageType.BOOT_CONFIG, told)
    with pytest.raises(InvalidConfigError, match=f"{MAX_BOOT_BYTES + 1} bytes .max {MAX_BOOT_BYTES}.$"):
        validate_merged(filled(config, -1))
    validate_merged(replace(filled(config, -1), init=None))
