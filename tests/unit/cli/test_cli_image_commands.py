"""``msb load`` and ``msb image …`` on a real archive, and pulls that are interrupted."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.images import busybox_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return busybox_archive(tmp_path_factory.mktemp("archive") / "busybox.tar", reference="test/box:1")


@pytest.fixture
def env(tmp_path):
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "MSB_HOME": str(tmp_path / "home"), "PYTHONPATH": path}


def msb(env, *words, **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    command = [sys.executable, "-m", "microsandbox.cli", *words]
    return subprocess.run(command, env=env, capture_output=True, timeout=60, **options)


def test_an_image_from_load_to_removal(env, archive):
    done = msb(env, "load", "-i", archive, "-t", "other:2")
    assert done.returncode == 0
    assert done.stderr.decode().splitlines()[0].startswith("   ✓ Loaded       test/box:1")
    assert sorted(msb(env, "images", "-q").stdout.split()) == [b"other:2", b"test/box:1"]
    [first, *_] = json.loads(msb(env, "image", "ls", "--format", "json").stdout)
    assert set(first) == {
        "reference", "digest", "size_bytes", "architecture", "os", "layer_count", "created_at",
    }  # fmt: skip
    table = msb(env, "image", "ls").stdout.decode().splitlines()
    assert table[0].split() == ["REFERENCE", "DIGEST", "SIZE", "CREATED"]
    assert table[1].split()[1] == first["digest"][: len("sha256:") + 12]

    detail = json.loads(msb(env, "image", "inspect", "test/box:1", "--format", "json").stdout)
    assert detail["config"]["cmd"] == ["sh"]
    assert [layer["position"] for layer in detail["layers"]] == [0]
    assert "  Cmd:          sh" in msb(env, "image", "inspect", "test/box:1").stdout.decode().splitlines()

    done = msb(env, "rmi", "nothing:1", "other:2", "-q")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "error: image not found: nothing:1",
        "error: some images failed to remove",
    ]
    assert msb(env, "images", "-q").stdout == b"test/box:1\n"


def test_load_from_standard_input(env, archive, tmp_path):
    with archive.open("rb") as source:
        done = msb(env, "load", "--format", "json", stdin=source)
    assert json.loads(done.stdout) == ["test/box:1"]
    assert msb(env, "load", "-q", stdin=None, input=archive.read_bytes()).stderr == b""
    assert list((tmp_path / "home").rglob(".partial-*")) == []


def test_what_cannot_be_loaded(env):
    assert msb(env, "load").stderr == b"error: image error: archive missing manifest.json or oci-layout\n"
    done = msb(env, "load", "-i", "/no/such")
    assert (done.returncode, done.stderr.startswith(b"error: io error: archive /no/such")) == (1, True)


def test_prune_asks(env, archive):
    msb(env, "load", "-q", "-i", archive)
    done = msb(env, "image", "prune")
    assert done.returncode == 1
    assert done.stderr == b"error: non-interactive terminal; use --yes to prune cached images\n"
    counts = json.loads(msb(env, "image", "prune", "--yes", "--format", "json").stdout)
    assert (counts["image_refs_removed"], counts["manifests_removed"], counts["layers_removed"]) == (1, 1, 1)
    assert msb(env, "image", "prune", "-y").stderr == b"Nothing to prune.\n"
    assert msb(env, "image", "ls").stderr == b"No images found.\n"


def test_a_pull_that_cannot_be(env):
    done = msb(env, "pull", "NOT A REFERENCE")
    assert (done.returncode, done.stderr[:30]) == (1, b"error: image error: invalid im")
    done = msb(env, "pull", "x", "--ca-certs", "/no/such")
    assert done.stderr == b"error: failed to read CA certs from `/no/such`: No such file or directory\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_pull_that_is_interrupted_leaves_nothing(env, tmp_path, number, code):
    with socket.create_server(("127.0.0.1", 0)) as registry:  # it takes the connection and says nothing
        process = subprocess.Popen(
            [sys.executable, "-m", "microsandbox.cli", "pull", f"127.0.0.1:{registry.getsockname()[1]}/x"],
            env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        with process:
            with registry.accept()[0]:
                process.send_signal(number)
                assert process.wait(10) == code
            assert process.stderr.read() == b""
    assert list((tmp_path / "home").rglob(".partial-*")) == []
