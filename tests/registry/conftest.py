"""Registries for the tests: a real one, and one that misbehaves on request."""

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from microsandbox.image.registry import RetryPolicy
from tests.registry.scripted_registry import ScriptedRegistry
from tests.unit.image.image_building import layout_files, new_store, write_layout


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def store(home):
    """A store that does not wait long between tries."""
    return new_store(home, retry=RetryPolicy(attempts=4, first=0.01, longest=0.05))


@pytest.fixture
def registry():
    with ScriptedRegistry() as running:
        yield running


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving_registry(directory, more=""):
    """The address of a docker-registry on the loopback interface, with ``more`` in its configuration."""
    port = free_port()
    (directory / "config.yml").write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
        f"log: {{level: error}}\n{more}"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", directory / "config.yml"], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 10
        while not answers(f"http://127.0.0.1:{port}/v2/"):
            assert process.poll() is None and time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:  # it wants to know who asks
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def real_registry(tmp_path_factory):
    with serving_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1 and its key."""
    directory = tmp_path_factory.mktemp("tls")
    paths = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
            "-out", paths[0], "-keyout", paths[1],
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


@pytest.fixture
def push(real_registry, tmp_path):
    """A function that pushes images with skopeo; it returns the reference."""

    def push(name, *images, nested=False):
        layout = write_layout(
            tmp_path / f"push-{name.replace('/', '-')}", layout_files(*images, nested=nested)
        )
        subprocess.run(
            [
                "skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false",
                *(["--all"] if nested else []),
                f"oci:{layout}:{images[0].name}", f"docker://{real_registry}/{name}:1",
            ],
            check=True,
        )  # fmt: skip
        return f"{real_registry}/{name}:1"

    return push
