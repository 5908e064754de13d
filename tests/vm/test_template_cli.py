"""``msb template`` and ``run --timings`` with real machines, in a home of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from microsandbox.store.home import Home
from tests import audit
from tests.images import busybox_archive

pytestmark = pytest.mark.vm
MSB = [sys.executable, "-m", "microsandbox.cli"]
REFERENCE = "test/busybox:1"


@pytest.fixture
def home(prepared_kernels, monkeypatch, tmp_path_factory):
    """A home without templates; nothing runs in it when it goes."""
    home = tmp_path_factory.mktemp("h")
    (home / "kernels").symlink_to(prepared_kernels)
    monkeypatch.setenv("MSB_HOME", str(home))
    yield home
    audit.wait_clean(home, within=60)
    Home.open().metrics_registry.unlink(missing_ok=True)


def msb(*arguments):
    done = subprocess.run([*MSB, *arguments], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def templates():
    return json.loads(msb("template", "ls", "--format", "json")[1])


def files():
    return {path.name for path in Home.open().templates.iterdir() if not path.name.startswith(".lock-")}


def machines_of_builders(msb):
    """QEMU processes that are grandchildren of ours."""
    found = set()
    for builder in audit.children_of(msb):
        with suppress(FileNotFoundError):
            found |= set(audit.children_of(builder)) & audit.machines()
    return found


def test_what_is_built_is_what_sandboxes_start_from_and_goes_with_its_image(home, tmp_path):
    archive = busybox_archive(tmp_path / "image.tar", reference=REFERENCE)
    assert msb("load", "-q", "-i", str(archive))[0] == 0
    code, out, err = msb("template", "build", "-m", "256", REFERENCE, "--format", "json")
    assert code == 0, err
    assert err.startswith(f"   ✓ Built        {REFERENCE}")
    built = json.loads(out)
    assert (built["image"], built["cpus"], built["memory_mib"]) == (REFERENCE, 1, 256)
    assert built["upper_size_mib"] == 4096
    bare = next(template for template in templates() if template["id"] != built["id"])
    assert (bare["image"], bare["memory_mib"]) == (None, 256)
    again = json.loads(msb("template", "build", "-q", "-m", "256", REFERENCE, "--format", "json")[1])
    assert (again["id"], again["created_at"]) == (built["id"], built["created_at"])

    code, out, err = msb("run", "-q", "--timings", "-m", "256", REFERENCE, "--", "echo", "warm")
    assert (code, out) == (0, "warm\n")
    heading, *rows = err.splitlines()
    assert heading.split() == ["WHAT", "MS", "SINCE", "CREATE"]
    marks = {name: float(at) for name, at in (row.rsplit(maxsplit=1) for row in rows)}
    assert list(marks.values()) == sorted(marks.values())
    order = ["msb started", "create", "guest ready", "connected", "command's first output", "command ended"]
    order += ["sandbox stopped", "sandbox removed"]
    assert [name for name in marks if name in order] == order
    assert "agent's hello" not in marks, "a guest that boots says hello, one that goes on does not"
    assert "agent's hello" in msb("run", "--timings", "-m", "300", REFERENCE, "--", "true")[2]
    audit.wait_clean(home, within=60)

    assert msb("image", "rm", "-q", REFERENCE)[0] == 0
    assert {template["image"] for template in templates()} == {None}
    assert bare["id"] in {template["id"] for template in templates()}
    assert msb("template", "rm", "-q", bare["id"][:8])[0] == 0
    assert msb("template", "rm", "-q", "--all")[0] == 0
    assert files() == {"logs"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_interrupted_leaves_nothing(home, number):
    process = subprocess.Popen([*MSB, "template", "build", "-m", "256"], stderr=subprocess.PIPE)
    while not (machine := machines_of_builders(process.pid)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 128 + number
    assert not machine & audit.machines()
    assert files() == {"logs"}


def test_a_build_that_fails_says_why(home, tmp_path):
    (home / "templates").write_text("in the way")
    code, out, err = msb("template", "build", "-m", "256")
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and str(home / "templates") in err
    code, out, err = msb("doctor", "--fix", "-q")
    assert (code, out) == (0, ""), "sandboxes work without"
    assert err.startswith("warn: the memory template was not built: ") and str(home / "templates") in err


def test_doctor_builds_the_template_of_the_default_shape(home):
    def check(*arguments):
        code, out, err = msb("doctor", "--format", "json", *arguments)
        assert (code, err) == (0, "")
        return next(check for check in json.loads(out) if check["name"] == "memory template")

    assert check()["status"] == "ok" and "not built yet" in check()["found"]
    assert templates() == [], "looking builds nothing"
    assert "checksums match" in check("--fix")["found"]
    [template] = templates()
    assert (template["image"], template["cpus"], template["memory_mib"]) == (None, 1, 512)
    check("--fix")
    assert [found["created_at"] for found in templates()] == [template["created_at"]]
    assert "MSB_TEMPLATES" not in os.environ
