"""Finding the agent's binary for a guest's architecture, and what is said when there is none."""

import os
import shutil

import pytest

import hatch_build
import microsandbox._guest as guest
from microsandbox.errors import PrerequisiteError


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("x86_64", "agentd-x86_64"),
        ("AMD64", "agentd-x86_64"),
        ("aarch64", "agentd-aarch64"),
        ("arm64", "agentd-aarch64"),
    ],
)
def test_the_binary_of_a_named_machine_is_found(tmp_path, monkeypatch, machine, name):
    (tmp_path / name).write_bytes(b"\x7fELF")
    monkeypatch.setattr(guest, "__file__", str(tmp_path / "__init__.py"))
    assert guest.agent_binary(machine) == tmp_path / name


def test_a_missing_binary_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(guest, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(PrerequisiteError, match="python hatch_build.py"):
        guest.agent_binary("x86_64")


def test_a_machine_without_an_agent_is_named():
    with pytest.raises(PrerequisiteError, match="'riscv64'"):
        guest.agent_binary("riscv64")


def test_built_binaries_are_static_small_and_for_their_architecture():
    machines = {"x86_64": 62, "aarch64": 183}
    for architecture, number in machines.items():
        content = guest.agent_binary(architecture).read_bytes()
        assert content[:6] == b"\x7fELF\x02\x01"
        assert int.from_bytes(content[18:20], "little") == number
        assert len(content) < 400 << 10
        headers = int.from_bytes(content[32:40], "little")
        kinds = {
            int.from_bytes(content[headers + 56 * i :][:4], "little")
            for i in range(int.from_bytes(content[56:58], "little"))
        }
        assert 3 not in kinds, "an interpreter is asked for: the binary is not static"


def test_a_binary_older_than_a_source_is_not_current(tmp_path):
    shutil.copytree(hatch_build.AGENT.source, tmp_path / "guest", ignore=shutil.ignore_patterns("build"))
    program = hatch_build.AGENT._replace(source=tmp_path / "guest")
    binary = tmp_path / "agentd"
    assert not hatch_build.is_current(program, binary)
    binary.touch()
    newest = max(path.stat().st_mtime for path in program.inputs)
    os.utime(binary, (newest + 1e6, newest + 1e6))
    assert hatch_build.is_current(program, binary)
    os.utime(tmp_path / "guest" / "wire.h", (newest + 2e6, newest + 2e6))
    assert not hatch_build.is_current(program, binary)
