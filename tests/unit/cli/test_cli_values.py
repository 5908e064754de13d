"""The texts of options: what they mean, and what is said of those that mean nothing."""

import pytest

from microsandbox.cli import values
from microsandbox.cli.values import Script, Tmpfs, script_text


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/t", Tmpfs("/t", {"tmpfs": True})),
        ("/t:64", Tmpfs("/t", {"tmpfs": True, "size_mib": 64})),
        ("/t:1.5G", Tmpfs("/t", {"tmpfs": True, "size_mib": 1536})),
        ("/t:ro", Tmpfs("/t", {"tmpfs": True, "readonly": True})),
        ("/t:size=8M,noexec", Tmpfs("/t", {"tmpfs": True, "size_mib": 8, "noexec": True})),
        (
            "/t:8M: nosuid ,,rw",
            Tmpfs("/t", {"tmpfs": True, "size_mib": 8, "nosuid": True, "readonly": False}),
        ),
    ],
)
def test_tmpfs(text, mount):
    assert values.tmpfs(text) == mount


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (":64", "tmpfs path must not be empty"),
        ("/t::ro", "tmpfs size must not be empty before options"),
        ("/t:8:size=9", "tmpfs size specified more than once"),
        ("/t:ro,rw", "mount option `ro`/`rw` specified more than once"),
        ("/t:nodev,nodev", "mount option `nodev` specified more than once"),
        ("/t:suid", 'unsupported mount option "suid"'),
        ("/t:8:what", 'mount option "what" must be a flag or key=value'),
        ("/t:what=8", 'unknown mount option "what"'),
        ("/t:fstype=ext4", "mount option `fstype` is not valid here"),
        ("/t:size=x", 'invalid size "x" (expected e.g. 512M, 1G)'),
    ],
)
def test_wrong_tmpfs(text, error):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared below
        values.tmpfs(text)
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=1024", ("nofile", 1024, 1024)),
        ("NPROC=64:128", ("nproc", 64, 128)),
        ("as=18446744073709551615", ("as", 2**64 - 1, 2**64 - 1)),
    ],
)
def test_rlimit(text, limit):
    assert tuple(values.rlimit(text).values()) == limit


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nofile", "rlimit must be in format RESOURCE=LIMIT"),
        ("nofile=x", "invalid soft limit: x"),
        ("nofile=1:x", "invalid hard limit: x"),
        ("nofile=-1", "invalid soft limit: -1"),
        ("nofile=1:2:3", "too many ':' separators"),
        ("nofile=2:1", "soft limit cannot exceed hard limit"),
        ("files=1", "unknown rlimit resource: files"),
        ("nofile=18446744073709551616", "invalid soft limit: 18446744073709551616"),
    ],
)
def test_wrong_rlimit(text, error):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        values.rlimit(text)
    assert str(raised.value) == error


def test_the_limits_are_those_of_the_sdk():
    from microsandbox.types import RlimitResource

    assert set(RlimitResource) == values.RLIMITS


def test_env_copies_the_callers_variable(monkeypatch):
    monkeypatch.setenv("MINE", "a=b")
    monkeypatch.delenv("NOBODYS", raising=False)
    assert values.env("A=b=c") == ("A", "b=c")
    assert values.env("MINE") == ("MINE", "a=b")
    assert values.env("NOBODYS=") == ("NOBODYS", "")
    with pytest.raises(ValueError, match="environment variable 'NOBODYS' not set"):
        values.env("NOBODYS")


def test_label_without_a_value():
    assert (values.label("a"), values.label("a=b=c")) == (("a", ""), ("a", "b=c"))


@pytest.mark.parametrize("text", ["", "/bin/my sh", "sh\t", "/"])
def test_a_shell_that_cannot_be_one(text):
    with pytest.raises(ValueError, match="^--shell "):
        values.shell(text)


def test_limits_are_whole_seconds():
    assert values.whole_seconds("1h30m") == 5400
    assert values.whole_seconds("1500ms") == 2
    assert values.whole_seconds("500ms") == 1


@pytest.mark.parametrize(
    ("text", "shell", "written"),
    [
        (r"hi=echo a\nb\t\q\\", None, "#!/bin/sh\necho a\nb\t\\q\\\n"),
        ("hi=x\\", None, "#!/bin/sh\nx\\\n"),
        ("hi=", "bash", "#!/usr/bin/env bash\n\n"),
        (r"hi=x\n", "/bin/zsh", "#!/bin/zsh\nx\n"),
    ],
)
def test_script(text, shell, written):
    script = values.script(text)
    assert (script.name, script_text(script, shell)) == ("hi", written)


def test_verbatim_scripts(tmp_path):
    path = tmp_path / "s"
    path.write_bytes(b"#!/x\r\n\\n")
    assert values.script_raw(r"n=a\n=") == Script("n", r"a\n=", verbatim=True)
    script = values.script_path(f"n:{path}")
    assert script_text(script, "bash") == "#!/x\r\n\\n"


@pytest.mark.parametrize(
    ("parse", "text", "error"),
    [
        (values.script, "x", "script must be in format NAME=BODY"),
        (values.script_raw, "x", "script-raw must be in format NAME=BODY"),
        (values.script_path, "x", "script-path must be in format NAME:PATH"),
        (values.script, "=x", "script name must not be empty (NAME=BODY)"),
        (values.script_path, ":x", "script name must not be empty (NAME:PATH)"),
        (
            values.script_path,
            "x:/no/such",
            "failed to read script file '/no/such': No such file or directory",
        ),
        (values.count, "256", 'invalid number "256" (expected 0 to 255)'),
        (values.count, "-1", 'invalid number "-1" (expected 0 to 255)'),
        (values.seconds, "5s", 'invalid number of seconds "5s"'),
    ],
)
def test_what_is_wrong(parse, text, error):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        parse(text)
    assert str(raised.value) == error
