"""Templates that no machine ever wrote: files with the right names in a store of the test's own."""

from types import SimpleNamespace

import pytest

from microsandbox.store.config import Config
from microsandbox.store.files import partial_path
from microsandbox.store.home import Home
from microsandbox.template.store import RAM, STATE, UPPER, Description, TemplateStore

DESCRIPTION = Description("tcg", 1, 64, "6.1.0", "7.2.0")
KEYS = SimpleNamespace(one="1" * 32, two="2" * 32, three="3" * 32)


@pytest.fixture
def store(tmp_path):
    store = TemplateStore(Home(tmp_path, Config()))
    store.root.mkdir()
    return store


def write_partial(store, key, *, size=4 << 20):
    """A directory to be published: RAM with holes, a state, a writable layer."""
    partial = partial_path(store.root / key)
    partial.mkdir()
    with (partial / RAM).open("wb") as ram:
        ram.truncate(size)
        for position in (0, size // 2):
            ram.seek(position)
            ram.write(b"ram " * 1024)
    (partial / STATE).write_bytes(b"state " * 1000)
    (partial / UPPER).write_bytes(b"upper " * 1000)
    return partial


@pytest.fixture
def publish(store):
    def publish(key=KEYS.one, description=DESCRIPTION, **shape):
        return store.publish(write_partial(store, key, **shape), key, description)

    return publish
