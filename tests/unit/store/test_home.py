"""Where state is: MSB_HOME, what it may be, what it must not be."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from microsandbox.errors import InvalidConfigError
from microsandbox.store.home import Home, base_directory, validate_name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "sandbox name is required"),
        ("é" * 65, "sandbox name is too long: 130 bytes (max 128)"),
        ("..", "must be usable as a file name"),
        ("a/b", "must be usable as a file name"),
        ("a\0b", "must be usable as a file name"),
    ],
)
def test_names_that_cannot_be_one_path_component_are_refused(name, complaint):
    with pytest.raises(InvalidConfigError) as caught:
        validate_name(name)
    assert complaint in str(caught.value)


def test_socket_paths_fall_back_and_then_explain(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / ("x" * 100)))
    with pytest.raises(InvalidConfigError, match="set MSB_HOME or paths.sandboxes to a shorter directory"):
        Home.open().sandbox("name")


@pytest.mark.parametrize(
    ("variables", "base"),
    [
        ({"MSB_HOME": "/state", "HOME": "/home/me"}, "/state"),
        ({"MSB_HOME": "state"}, "{cwd}/state"),
        ({"MSB_HOME": "", "HOME": "/home/me"}, "/home/me/.microsandbox"),
        ({"HOME": "/home/me"}, "/home/me/.microsandbox"),
        ({"HOME": "home"}, "{cwd}/home/.microsandbox"),
    ],
)
def test_the_base_directory(variables, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MSB_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert base_directory() == Path(base.format(cwd=tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be a user without a name")
def test_a_user_without_a_home_has_one_where_it_is(tmp_path):
    """The user of a container that only has a number."""
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; from microsandbox.store.home import base_directory; import pwd;"
        "os.setuid(54321); print(base_directory())"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "MSB_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "/.microsandbox\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_file_that_cannot_be_looked_at_is_not_taken_for_none():
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 54321, -1)
        os.chmod(home, 0o600)
        code = (
            "import os; import microsandbox.store.config_file; from microsandbox.store.home import Home;"
            "os.setuid(54321); Home.open()"
        )
        environment = {**os.environ, "MSB_HOME": home}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert f"{home}/config.json cannot be read: Permission denied" in done.stderr


def test_a_relative_home_needs_a_current_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", "state")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        InvalidConfigError, match="MSB_HOME is 'state', relative to a current directory that is"
    ):
        Home.open()


def test_a_tilde_that_no_shell_has_replaced_is_refused(monkeypatch):
    monkeypatch.setenv("MSB_HOME", "~/state")
    with pytest.raises(InvalidConfigError, match="MSB_HOME is '~/state', and ~ means something"):
        Home.open()


def test_a_home_that_is_no_directory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("MSB_HOME", str(path))
        with pytest.raises(InvalidConfigError, match=f"MSB_HOME is {path}, which "):
            Home.open()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_a_home_that_others_can_write_is_refused_with_what_mends_it(tmp_path, monkeypatch, mode):
    home = tmp_path / "a home"
    home.mkdir()
    home.chmod(mode)
    monkeypatch.setenv("MSB_HOME", str(home))
    with pytest.raises(InvalidConfigError) as caught:
        Home.open()
    command = f"chmod go-w '{home}'"
    assert str(caught.value) == f"invalid config: {home} can be written by other users; run: {command}"
    subprocess.run(command, shell=True, check=True)
    assert Home.open().root == home


@pytest.mark.parametrize("key", ["home", "paths.cache", "paths.sandboxes"])
def test_so_is_a_part_of_it_that_is_elsewhere(tmp_path, monkeypatch, key):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o777)
    first, _, second = key.partition(".")
    value = f'{{"{second}": "{elsewhere}"}}' if second else f'"{elsewhere}"'
    (tmp_path / "config.json").write_text(f'{{"{first}": {value}}}')
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    with pytest.raises(InvalidConfigError, match=f"{elsewhere} can be written by other users"):
        Home.open()


def test_the_configured_home_has_everything(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(
        f'{{"home": "{tmp_path}/other", "paths": {{"cache": "{tmp_path}/c"}}}}'
    )
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    home = Home.open()
    assert {home.database.parent.parent, home.run.parent, home.sandboxes.parent} == {tmp_path / "other"}
    assert home.cache == tmp_path / "c"


def test_the_homes_of_tests_are_private(session_home):
    assert session_home.stat().st_mode & 0o777 == 0o700
