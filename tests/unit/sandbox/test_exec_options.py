"""exec's arguments and the request they become."""

from types import SimpleNamespace

import cbor2
import pytest
from msgspec.structs import replace

from microsandbox import Rlimit, RlimitResource, Stdin
from microsandbox.errors import ExecFailedError, InvalidConfigError
from microsandbox.sandbox.exec_options import (
    MAX_ARGUMENT_BYTES,
    ExecOptions,
    StdinMode,
    exec_request,
    parse_exec,
    parse_shell,
)


class Options:
    def __init__(self, **values):
        self._values = values

    def _to_dict(self):
        return self._values


@pytest.mark.parametrize(
    ("args", "keywords", "expected"),
    [
        (None, {}, ExecOptions("cmd")),
        ([], {}, ExecOptions("cmd")),
        (["a", "b"], {"cwd": "/w", "user": "u"}, ExecOptions("cmd", ("a", "b"), "/w", "u")),
        (None, {"env": {"K": "V"}, "timeout": 2, "tty": True}, ExecOptions(
            "cmd", env=(("K", "V"),), timeout=2.0, tty=True)),
        ({"args": ["a"], "cwd": "/m", "env": {"B": "2"}}, {"cwd": "/k", "env": {"A": "1"}, "user": "u"},
         ExecOptions("cmd", ("a",), "/m", "u", (("B", "2"),))),
        ({"cwd": None, "timeout": None}, {"cwd": "/k", "timeout": 3},
         ExecOptions("cmd", cwd="/k", timeout=3.0)),
        (Options(tty=True), {}, ExecOptions("cmd", tty=True)),
        ({"rlimits": None}, {"rlimits": [Rlimit.nofile(9)]}, ExecOptions("cmd")),
        ({}, {"rlimits": (Rlimit.nofile(9),)}, ExecOptions("cmd", rlimits=(Rlimit.nofile(9),))),
        (None, {"rlimits": [{"resource": "NOFILE", "soft": 1, "hard": 2}]}, ExecOptions(
            "cmd", rlimits=(Rlimit(RlimitResource.NOFILE, 1, 2),))),
        (None, {"rlimits": [SimpleNamespace(resource="as", soft=1, hard=2**64 - 1)]}, ExecOptions(
            "cmd", rlimits=(Rlimit(RlimitResource.AS, 1, 2**64 - 1),))),
        (None, {"stdin": b"in"}, ExecOptions("cmd", stdin=StdinMode.BYTES, stdin_data=b"in")),
        (None, {"stdin": "bytes"}, ExecOptions("cmd", stdin=StdinMode.BYTES)),
        (None, {"stdin": "null"}, ExecOptions("cmd")),
        (None, {"stdin": Stdin.pipe()}, ExecOptions("cmd", stdin=StdinMode.PIPE)),
        (None, {"stdin": Stdin.bytes(b"x")}, ExecOptions("cmd", stdin=StdinMode.BYTES, stdin_data=b"x")),
        ({"stdin_data": b"x"}, {"stdin": "pipe"}, ExecOptions("cmd", stdin=StdinMode.BYTES, stdin_data=b"x")),
        ({"stdin": "bytes", "stdin_data": [1, 2]}, {}, ExecOptions(
            "cmd", stdin=StdinMode.BYTES, stdin_data=b"\1\2")),
        ({"stdin": "pipe", "stdin_data": b"x"}, {}, ExecOptions("cmd", stdin=StdinMode.PIPE)),
        ({"stdin": Stdin.null()}, {"stdin": b"x"}, ExecOptions("cmd")),
        ({"stdin": None}, {"stdin": b"x"}, ExecOptions("cmd", stdin=StdinMode.BYTES, stdin_data=b"x")),
    ],
)  # fmt: skip
def test_arguments_are_taken(args, keywords, expected):
    assert parse_exec("cmd", args, **keywords) == expected


@pytest.mark.parametrize(
    ("args", "keywords", "error", "text"),
    [
        ("ls", {}, TypeError, "args must be a list of strings, not a string"),
        (b"ls", {}, TypeError, "args must be a list of strings, not a string"),
        (("ls",), {}, TypeError, "args must be a list of strings"),
        ([1], {}, TypeError, "args must be a list of strings"),
        ({"args": "ls"}, {}, TypeError, "args must be a list of strings, not a string"),
        ({"args": ("ls",)}, {}, TypeError, "args must be a list of strings"),
        ({"workdir": "/"}, {}, TypeError, "unknown exec option: workdir"),
        ({1: "/"}, {}, TypeError, "exec option keys must be strings"),
        ({"cwd": 1}, {}, TypeError, "'int' object cannot be converted to 'PyString'"),
        (None, {"cwd": 1}, TypeError, "argument 'cwd': 'int' object cannot be converted to 'PyString'"),
        (None, {"env": [1]}, TypeError, "argument 'env': 'list' object cannot be converted to 'PyDict'"),
        (None, {"tty": 1}, TypeError, "argument 'tty': 'int' object cannot be converted to 'PyBool'"),
        (None, {"timeout": "1"}, TypeError, "argument 'timeout': must be real number, not str"),
        (None, {"timeout": -1}, ValueError, "timeout must be non-negative"),
        ({"timeout": -0.5}, {}, ValueError, "timeout must be non-negative"),
        (None, {"timeout": float("nan")}, ValueError, "timeout must be non-negative"),
        (None, {"timeout": float("inf")}, ValueError, "timeout must be finite"),
        (None, {"stdin": "hello"}, ValueError, "unknown stdin mode: hello. Expected: null, pipe, bytes"),
        (None, {"stdin": bytearray(b"x")}, TypeError, "stdin must be Stdin, bytes, or a stdin mode string"),
        ({"stdin_data": "x"}, {}, TypeError, "Can't extract `str` to `Vec`"),
        (None, {"rlimits": 1}, TypeError, "rlimits must be a sequence"),
        (None, {"rlimits": [{}]}, ValueError, "resource is required"),
        (None, {"rlimits": [{"resource": "cpu"}]}, ValueError, "soft is required"),
        (None, {"rlimits": [SimpleNamespace(resource="cpu", soft=1)]}, ValueError, "hard is required"),
        (None, {"rlimits": [{"resource": "x", "soft": 1, "hard": 1}]}, ValueError,
         "unknown rlimit resource: x"),
        (None, {"rlimits": [{"resource": "cpu", "soft": -1, "hard": 1}]}, OverflowError,
         "out of range integral type conversion attempted"),
        (None, {"evn": {}}, TypeError,
         "exec() got an unexpected keyword argument 'evn' (did you mean \"env\"?)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(args, keywords, error, text):
    with pytest.raises(error) as caught:
        parse_exec("cmd", args, **keywords)
    assert str(caught.value) == text


def test_commands_and_scripts_are_texts():
    with pytest.raises(TypeError, match="argument 'cmd': 'list' object cannot be converted to 'PyString'"):
        parse_exec(["ls"])
    with pytest.raises(TypeError, match="argument 'script': 'NoneType' object"):
        parse_shell(None, None, {})


def test_a_script_is_run_by_the_sandbox_s_shell():
    assert parse_shell("exit 3", None, {"cwd": "/w"}) == ExecOptions("/bin/sh", ("-c", "exit 3"), "/w")
    assert parse_shell("x", "/bin/bash", {}).cmd == "/bin/bash"


# the request


def test_a_request_falls_back_to_the_sandbox_and_then_to_the_root_directory(config):
    assert exec_request(parse_exec("ls", ["-l"]), config) == {
        "cmd": "ls",
        "args": ["-l"],
        "env": [],
        "cwd": "/",
        "tty": False,
        "rows": 24,
        "cols": 80,
        "rlimits": [],
    }
    config = replace(config, workdir="/srv", user="www")
    request = exec_request(parse_exec("ls"), config)
    assert (request["cwd"], request["user"]) == ("/srv", "www")
    request = exec_request(parse_exec("ls", cwd="/w", user="me"), config)
    assert (request["cwd"], request["user"]) == ("/w", "me")


def test_the_call_s_environment_comes_after_what_is_left_of_the_sandbox_s(config):
    config = replace(config, env=(("A", "1"), ("B", "2"), ("C", "3")))
    request = exec_request(parse_exec("env", env={"D": "4", "B": "=b"}), config)
    assert request["env"] == ["A=1", "C=3", "D=4", "B==b"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("linux", "linux"), (None, "xterm"), ("", "xterm"), (" ", "xterm"), ("dumb", "xterm")],
)
def test_a_terminal_has_the_host_s_type_unless_that_is_none(config, monkeypatch, host, expected):
    monkeypatch.delenv("TERM", raising=False)
    if host is not None:
        monkeypatch.setenv("TERM", host)
    assert exec_request(parse_exec("sh", tty=True), config)["env"] == [f"TERM={expected}"]
    assert exec_request(parse_exec("sh", tty=True, env={"TERM": "vt"}), config)["env"] == ["TERM=vt"]
    assert exec_request(parse_exec("sh"), config)["env"] == []


def test_limits_travel_as_plain_values_and_must_be_possible(config):
    limits = [Rlimit.as_(soft=1, hard=2)]
    request = exec_request(parse_exec("x", rlimits=limits), config)
    assert cbor2.loads(cbor2.dumps(request))["rlimits"] == [{"resource": "as", "soft": 1, "hard": 2}]
    with pytest.raises(InvalidConfigError) as caught:
        exec_request(parse_exec("x", rlimits=[Rlimit(RlimitResource.CPU, 3, 2)]), config)
    assert str(caught.value) == "invalid config: rlimit cpu: soft (3) must not exceed hard (2)"


@pytest.mark.parametrize(
    "options",
    [
        ExecOptions("a\0b"),
        ExecOptions("a", ("\0",)),
        ExecOptions("a", env=(("K", "\0"),)),
        ExecOptions("a", cwd="/\0"),
        ExecOptions("a", user="u\0"),
    ],
)
def test_texts_that_would_end_early_in_the_guest_start_nothing(config, options):
    with pytest.raises(ExecFailedError, match="nul byte found in provided data") as caught:
        exec_request(options, config)
    assert caught.value.kind == "bad_args"


def test_arguments_too_long_for_a_message_start_nothing(config):
    with pytest.raises(ExecFailedError, match=r'spawn "x": Argument list too long \(os error 7\)') as caught:
        exec_request(ExecOptions("x", ("y" * MAX_ARGUMENT_BYTES,)), config)
    assert (caught.value.errno, caught.value.errno_name) == (7, "E2BIG")
