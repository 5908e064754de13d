"""The host's QEMU: found, examined once, examined again when a file of it changes."""

import json

import pytest

from microsandbox.errors import PrerequisiteError
from microsandbox.store.home import Home
from microsandbox.vmm import installation
from microsandbox.vmm.installation import find_installation


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    return Home.open()


def test_everything_qemu_needs_is_listed(home):
    found = find_installation(home)
    names = {path.rsplit("/", 1)[-1] for path in found.files}
    assert {"qboot.rom", "pvh.bin"} <= names
    assert any(name.startswith("ld-linux") for name in names), "the dynamic loader"
    assert any(name.startswith("libc.so") for name in names)
    assert tuple(map(int, found.version.split("."))) >= installation.OLDEST_VERSION


def test_a_second_look_costs_no_program(home, monkeypatch):
    first = find_installation(home)
    monkeypatch.setattr(installation.tools, "run", lambda *_, **__: pytest.fail("a program was run"))
    assert find_installation(home) == first


@pytest.mark.parametrize("damage", ["", "{}", '{"fingerprint": [], "installation": {}}', "[1"])
def test_a_damaged_or_stale_record_is_made_anew(home, damage):
    first = find_installation(home)
    (home.cache / "qemu.json").write_text(damage)
    assert find_installation(home) == first
    document = json.loads((home.cache / "qemu.json").read_text())
    document["fingerprint"][0][2] += 1
    (home.cache / "qemu.json").write_text(json.dumps(document))
    assert find_installation(home) == first
    assert json.loads((home.cache / "qemu.json").read_text()) != document


def test_a_missing_qemu_is_one_sentence_with_its_package(home, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(installation.tools, "_EXTRA_PATH", ())
    with pytest.raises(
        PrerequisiteError, match=r"qemu-system-\w+ was not found .* apt-get install qemu-system"
    ):
        find_installation(home)
