"""config.json as sandboxes see it: the command line with a home whose configuration says otherwise."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.vm

MSB = [sys.executable, "-m", "microsandbox.cli"]


@pytest.fixture
def configured(session_home, tmp_path):
    """``msb`` with this config.json, which has everything but sandboxes in the home of all tests."""
    sandboxes = tmp_path / "boxes"

    def msb(*arguments, **config):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        document = {"home": str(session_home), "paths": {"sandboxes": str(sandboxes)}, **config}
        (home / "config.json").write_text(json.dumps(document))
        environment = {**os.environ, "MSB_HOME": str(home)}
        return subprocess.run([*MSB, *arguments], env=environment, capture_output=True, text=True, timeout=90)

    msb.sandboxes = sandboxes
    return msb


def test_a_sandbox_is_what_its_configuration_says(configured, busybox, name, clean):
    defaults = {
        "cpus": 2, "memory_mib": 200, "oci": {"upper_size_mib": 96}, "shell": "/bin/ash", "workdir": "/etc",
        "disable_metrics_sample": True,
    }  # fmt: skip
    config = {"sandbox_defaults": defaults, "log_level": "debug", "database": {"busy_timeout_secs": 7.5}}
    done = configured("create", busybox, "-n", name, **config)
    assert done.returncode == 0, done.stderr
    try:
        script = "nproc; pwd; grep MemTotal /proc/meminfo; df -m / | tail -n 1"
        done = configured("exec", name, "--", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        processors, directory, memory, disk = done.stdout.splitlines()
        assert (processors, directory) == ("2", "/etc")
        assert 100_000 < int(memory.split()[1]) < 200 * 1024
        assert 50 < int(disk.split()[1]) <= 96
        logs = configured.sandboxes / name / "logs"
        assert (logs / "exec.log").exists()
        assert "DEBUG" in (logs / "runtime.log").read_text()
        done = configured("metrics", name)
        assert f"metrics disabled for sandbox: {name}" in done.stderr
        inspected = json.loads(configured("inspect", name, "--format", "json").stdout)
        assert '"shell": "/bin/ash"' in json.dumps(inspected)
    finally:
        configured("rm", "-f", name)
    assert not (configured.sandboxes / name).exists()


def test_a_wrong_configuration_is_one_line_of_every_command(configured):
    for command in (["ls"], ["run", "alpine"], ["doctor"]):
        done = configured(*command, sandbox_defaults={"cpus": "many"})
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert (
            'config.json: sandbox_defaults.cpus must be a whole number from 1 to 255, got "many"'
            in done.stderr
        )
