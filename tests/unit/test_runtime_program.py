"""Finding ``msb``, and being it."""

import os
import subprocess
import sys

import pytest

from microsandbox import _runtime
from microsandbox.errors import InvalidConfigError, MicrosandboxError


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("MSB_PATH", raising=False)
    monkeypatch.setattr(_runtime, "_registered", None)
    monkeypatch.setattr(_runtime, "msb_path", lambda: tmp_path / "scripts" / "msb")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))


def program(path):
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\necho "$0 $@"\n')
    path.chmod(0o755)
    return str(path)


def test_the_first_msb_of_the_ladder_counts(tmp_path, monkeypatch):
    with pytest.raises(MicrosandboxError, match="set MSB_PATH or reinstall the package"):
        _runtime.resolved_msb_path()
    for place in ("path", "home/bin", "bin", "scripts"):
        path = program(tmp_path / place / "msb")
        assert _runtime.resolved_msb_path() == path
    (tmp_path / "home" / "config.json").write_text(f'{{"paths": {{"msb": "{tmp_path}/configured/msb"}}}}')
    with pytest.raises(InvalidConfigError, match="paths.msb in config.json is .*, which is not a file"):
        _runtime.resolved_msb_path()
    path = program(tmp_path / "configured" / "msb")
    assert _runtime.resolved_msb_path() == path
    monkeypatch.setenv("MSB_PATH", "")
    assert _runtime.resolved_msb_path() == path
    _runtime.set_runtime_msb_path("/registered/msb")
    _runtime.set_runtime_msb_path("/ignored/msb")
    assert _runtime.resolved_msb_path() == "/registered/msb"
    monkeypatch.setenv("MSB_PATH", "/environment/msb")
    assert _runtime.resolved_msb_path() == "/environment/msb"


def run(tmp_path, path):
    interpreter = os.path.realpath(f"/proc/{os.getpid()}/exe")
    code = "import sys; from microsandbox._cli import main; sys.exit(main())"
    environment = {**os.environ, "MSB_PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [interpreter, "-c", code, "ls", "-q"], env=environment, capture_output=True, text=True
    )


def test_the_entry_point_becomes_the_program_in_msb_path(tmp_path):
    path = program(tmp_path / "elsewhere" / "msb")
    result = run(tmp_path, path)
    assert (result.returncode, result.stdout) == (0, f"{path} ls -q\n")


def test_the_entry_point_says_what_is_missing(tmp_path):
    result = run(tmp_path, "/none/msb")
    assert result.returncode == 127
    assert result.stderr == (
        "microsandbox: msb binary not found at /none/msb. Set MSB_PATH or reinstall the package.\n"
    )


def test_without_a_kernel_nothing_is_installed():
    assert _runtime.is_installed() is False
