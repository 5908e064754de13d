"""From a command line to the keywords of ``Sandbox.create``, and to the guest's command."""

import pytest

from microsandbox.cli.acquire import pinned
from microsandbox.cli.commands import ROOT
from microsandbox.cli.creation import Creation
from microsandbox.cli.guest_command import resolve_command
from microsandbox.cli.parser import locate, parse
from microsandbox.sandbox.options import parse_create
from microsandbox.store.home import Home


def creation(*words):
    return Creation.of(parse(locate(ROOT, ["create", *words])))


def test_every_option_reaches_the_sandbox(monkeypatch, tmp_path):
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    script = tmp_path / "s"
    script.write_text("#!/bin/sh\n")
    wanted = creation(
        "alpine:3", "-n", "box", "-c", "2", "-m", "1G", "-w", "/w", "--shell", "/bin/ash", "-e", "A=b",
        "--label", "k=v",
        "--replace", "--replace-with-timeout", "500ms", "-q", "--tmpfs", "/t:8:ro", "--script", "a=echo",
        "--script-raw", "b=x", "--script-path", f"c:{script}", "--entrypoint", "run", "-H", "host",
        "-u", "1000:1000",
        "--pull", "never", "--oci-upper-size", "2G", "--log-level", "warn", "--max-duration", "1h",
        "--idle-timeout", "90", "--pause-after", "1m", "--no-net", "--security", "default",
    )  # fmt: skip
    assert (wanted.name, wanted.generated, wanted.quiet, wanted.replaces) == ("box", False, True, True)
    options = parse_create(wanted.name, wanted.keywords, Home.open())
    config = options.config
    assert (options.replace, options.replace_timeout) == (True, 0.5)
    assert (config.image.reference, config.image.upper_size_mib) == ("alpine:3", 2048)
    assert (config.cpus, config.memory_mib, config.workdir, config.shell) == (2, 1024, "/w", "/bin/ash")
    assert (config.env, config.labels, config.hostname) == ((("A", "b"),), {"k": "v"}, "host")
    assert (config.user, config.entrypoint, config.pull_policy) == ("1000:1000", ("run",), "never")
    assert (config.log_level, config.max_duration_secs, config.idle_timeout_secs) == ("warn", 3600, 90)
    assert config.pause_after_secs == 60
    assert config.scripts == {"a": "#!/bin/ash\necho\n", "b": "x", "c": "#!/bin/sh\n"}
    [tmpfs] = [mount for mount in config.tmpfs_mounts if mount.guest == "/t"]
    assert (tmpfs.size_mib, tmpfs.readonly) == (8, True)


@pytest.mark.parametrize(
    ("typed", "interpreter"), [([], "/bin/ash"), (["--shell", "bash"], "/usr/bin/env bash")]
)
def test_the_configured_shell_is_that_of_scripts_too(monkeypatch, tmp_path, typed, interpreter):
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    (tmp_path / "config.json").write_text('{"sandbox_defaults": {"shell": "/bin/ash"}}')
    wanted = creation("alpine", "--script", "a=echo", *typed)
    assert wanted.keywords["scripts"] == {"a": f"#!{interpreter}\necho\n"}


def test_a_name_is_made_up_and_nothing_else_is_assumed():
    first, second = creation("x"), creation("x")
    assert first.generated
    assert first.name.startswith("msb-")
    assert len(first.name) == len("msb-00000000")
    assert first.name != second.name
    assert not first.replaces


@pytest.mark.parametrize(
    ("words", "level"),
    [(["--debug"], "debug"), (["--debug", "--log-level", "warn"], "warn"), ([], None)],
)
def test_the_global_log_level_is_the_sandboxs_too(words, level):
    assert creation("x", *words).keywords["log_level"] == level


@pytest.mark.parametrize(
    ("config", "typed", "interactive", "argv"),
    [
        ({"entrypoint": ["e", "1"], "cmd": ["c"]}, ("t", "2"), False, ("e", "1", "t", "2")),
        ({"entrypoint": ["e"], "cmd": ["c"]}, (), False, ("e", "c")),
        ({"entrypoint": None, "cmd": ["c", "d"]}, (), True, ("c", "d")),
        ({"entrypoint": None, "cmd": ["c"]}, ("t",), True, ("t",)),
        ({"shell": "/bin/ash"}, (), True, ("/bin/ash",)),
        ({"shell": None}, (), True, ("/bin/sh",)),
        ({"shell": "/bin/ash"}, (), False, None),
    ],
)
def test_what_is_run(config, typed, interactive, argv):
    assert resolve_command(config, typed, interactive=interactive) == argv


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("alpine", "alpine"),
        ("alpine:3", "alpine"),
        ("localhost:5000/a/b:3", "localhost:5000/a/b"),
        ("localhost:5000/a", "localhost:5000/a"),
        ("a/b:1@sha256:00", "a/b"),
    ],
)
def test_the_same_repository_by_digest(reference, repository):
    assert pinned(reference, "sha256:11") == f"{repository}@sha256:11"
