"""From argv to an invocation, by the table."""

import pytest

from microsandbox.cli.commands import ROOT
from microsandbox.cli.model import Command, Stage, UsageError
from microsandbox.cli.parser import locate, parse, scope_of_tree
from microsandbox.errors import NotSupportedYetError


def parsed(line):
    return parse(locate(ROOT, line.split()))


def all_commands(command: Command = ROOT):
    for child in command.subcommands:
        yield child
        yield from all_commands(child)


def test_no_command_has_two_options_of_one_name():
    for command in all_commands():
        flags = [flag for option in command.options for flag in option.flags]
        assert len(flags) == len(set(flags)), command.name


def test_every_command_that_is_offered_can_be_called():
    import importlib

    for command in all_commands():
        if command.handler and command.handler.partition(":")[0] not in ("doctor", "images"):
            module, _, function = command.handler.partition(":")
            assert callable(getattr(importlib.import_module(f"microsandbox.cli.{module}"), function))
        else:
            assert command.handler or command.subcommands or command.stage is not Stage.OFFERED


def test_options_may_stand_anywhere_before_the_guests_command():
    found = parsed("run -m 1G alpine --cpus=2 -n box -e A=b -qe C=d -- ls -la -- -m")
    assert found["image"] == "alpine"
    assert (found["memory"], found["cpus"], found["name"], found["quiet"]) == (1024, 2, "box", True)
    assert found["env"] == [("A", "b"), ("C", "d")]
    assert found.guest_command == ("ls", "-la", "--", "-m")


def test_names_and_options_mix():
    found = parsed("rm a -f b --label x=y c")
    assert (found["name"], found["force"], found["label"]) == (["a", "b", "c"], True, [("x", "y")])


def test_aliases_keep_their_spelling():
    assert parsed("image rm x").path == ("msb", "image", "rm")
    assert parsed("image rm x").command.name == "remove"


@pytest.mark.parametrize("line", ["--debug run x", "run --debug x", "run x --debug"])
def test_the_log_level_may_stand_before_and_after_the_command(line):
    assert parsed(line).log_level == "debug"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("frobnicate", "unrecognized command 'frobnicate'"),
        ("image frobnicate", "unrecognized image command 'frobnicate'"),
        ("run --frobnicate x", "unrecognized arguments: --frobnicate"),
        ("run x y", "unrecognized arguments: y"),
        ("run x -m", "-m/--memory: expected one argument"),
        ("run x -m x", '--memory: invalid size "x" (expected e.g. 512M, 1G)'),
        ("run x -m 1G -m 2G", "the argument '-m' cannot be used multiple times"),
        (
            "run x --pull sometimes",
            "--pull: invalid pull policy: sometimes (expected: always, if-missing, never)",
        ),
        (
            "run x --log-level loud",
            "--log-level: invalid log level: loud (expected: error, warn, info, debug, trace)",
        ),
        (
            "run x --replace-with-timeout soon",
            '--replace-with-timeout: invalid duration "soon" (expected e.g. 30s, 5m, 1h30m)',
        ),
        ("run x --security lax", "--security: invalid security profile: lax (expected: default, restricted)"),
        ("run x --shell /", '--shell "/" is not a valid interpreter'),
        ("run x -c 256", '--cpus: invalid number "256" (expected 0 to 255)'),
        ("run -d -t x", "the argument '--detach' cannot be used with '--tty'"),
        ("create", "the following arguments are required: IMAGE"),
        ("exec", "the following arguments are required: NAME"),
        ("exec a -- b", None),
        ("ls --running --stopped", "the argument '--running' cannot be used with '--stopped'"),
        ("ps box --all", "the argument '[NAME]' cannot be used with '--all'"),
        ("ls --debug --trace", "the argument '--debug' cannot be used with '--trace'"),
        ("ls --mem", "unrecognized arguments: --mem"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_line(line, error):
    if error is None:
        assert parsed(line).guest_command == ("b",)
        return
    with pytest.raises(UsageError) as raised:
        parsed(line)
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("line", "feature"),
    [
        ("ssh box", "ssh"),
        ("cp a b:/c", "cp"),
        ("registry login x", "registry"),
        ("image save x", "image save"),
        ("snapshot --help", "snapshot"),
        ("run -v a:/b x", "-v/--volume"),
        ("run x -p 80:80", "-p/--port"),
        ("create x --tls-intercept", "--tls-intercept"),
        ("run --snapshot s", "--snapshot"),
    ],
)
def test_what_this_release_does_not_have_is_named(line, feature):
    with pytest.raises(NotSupportedYetError) as raised:
        parsed(line)
    assert str(raised.value) == f"{feature}: not supported yet by this release"


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("--tree", "msb"),
        ("image ls --tree", "msb image ls"),
        ("--debug ps --tree -q", "msb ps"),
        ("rmi --tree", "msb"),
        ("run --tree -- image", "msb run"),
        ("nonsense --tree", "msb"),
    ],
)
def test_the_scope_of_the_tree(line, label):
    assert scope_of_tree(ROOT, line.split())[1] == label
