"""Exceptions as texts and exit codes."""

import pytest

from microsandbox.cli.failures import GuestCommandError, report
from microsandbox.errors import ExecFailedError, InvalidConfigError
from microsandbox.runtime.boot_failure import BootFailure


@pytest.mark.parametrize(
    ("kind", "code", "label", "hint"),
    [
        ("not_found", 127, "not found", "on PATH inside the sandbox? Try `msb exec box -- which nope`"),
        ("permission_denied", 126, "permission denied", "— `chmod +x nope` may be needed"),
        ("not_executable", 126, "not executable", "not a runnable program"),
        ("bad_cwd", 1, "bad cwd", "create it first"),
        ("bad_args", 1, "bad args", "E2BIG"),
        ("resource_limit", 1, "resource limit", "raise `--rlimit`"),
        ("user_setup_failed", 1, "user setup", "`/etc/passwd`"),
        ("out_of_memory", 1, "out of memory", "larger `--memory`"),
        ("pty_setup_failed", 1, "pty setup", "`< /dev/null`"),
    ],
)  # fmt: skip
def test_a_command_that_did_not_start(capsys, kind, code, label, hint):
    failure = ExecFailedError("no", kind=kind, errno=2, errno_name="ENOENT")
    assert report(GuestCommandError("nope", "box", failure)) == code
    first, cause, advice = capsys.readouterr().err.splitlines()
    assert first == 'error: failed to exec "nope"'
    assert cause == f"  → {label}: no (ENOENT)"
    assert hint in advice


@pytest.mark.parametrize(
    ("errno", "name", "suffix"), [(5, "EIO", " (EIO)"), (5, None, " (errno 5)"), (None, None, "")]
)
def test_the_error_number_as_far_as_it_is_known(capsys, errno, name, suffix):
    failure = ExecFailedError("no", kind="strange", errno=errno, errno_name=name)
    assert report(GuestCommandError("x", "box", failure)) == 1
    assert capsys.readouterr().err == f'error: failed to exec "x"\n  → exec: no{suffix}\n'


def test_a_sandbox_that_did_not_boot(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    error = BootFailure("no disk\nconsole line", "image", 2).as_error("box")
    assert report(error) == 1
    assert capsys.readouterr().err.splitlines() == [
        'error: failed to start "box"',
        "  → image: no disk",
        "  → console line",
        "  → rootfs not found — try `msb pull <image>` first",
    ]
    logs = tmp_path / "sandboxes" / "box" / "logs"
    logs.mkdir(parents=True)
    report(error)
    assert "  → run `msb logs --source system box` for full diagnostics" in capsys.readouterr().err


def test_errors_of_ours_are_their_text(capsys):
    assert report(InvalidConfigError("no")) == 1
    assert capsys.readouterr().err == "error: invalid config: no\n"


def test_errors_of_the_system_name_the_file(capsys):
    assert report(FileNotFoundError(2, "No such file or directory", "/x")) == 1
    assert capsys.readouterr().err == "error: /x: No such file or directory (os error 2)\n"


def test_a_bug_is_called_one_and_shows_its_place_on_request(capsys):
    assert report(KeyError("x")) == 1
    assert capsys.readouterr().err == (
        "error: KeyError: 'x'\n  → this is a bug in msb; --debug shows where\n"
    )
    try:
        raise KeyError("x")
    except KeyError as error:
        report(error, traces=True)
    assert "Traceback (most recent call last)" in capsys.readouterr().err
