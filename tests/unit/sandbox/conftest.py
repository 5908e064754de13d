import pytest

from microsandbox.sandbox.options import SandboxConfig, parse_create
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.store.config import Config, SandboxDefaults
from microsandbox.store.home import Home


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path, Config(log_level="info", sandbox_defaults=SandboxDefaults(2, 256, 64)))


@pytest.fixture
def parse(home):
    """create's keywords for an ordinary image, as values."""

    def parse(name="box", **options):
        return parse_create(name, {"image": "alpine", **options}, home)

    return parse


@pytest.fixture
def config():
    return SandboxConfig("box", OciImage("alpine", 64))
