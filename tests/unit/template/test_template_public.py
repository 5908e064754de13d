"""``Template``: what is listed, what a prefix means, what is refused before anything is built."""

import os

import pytest

from microsandbox import InvalidConfigError, Template, TemplateInfo
from microsandbox.errors import TemplateError
from microsandbox.image.public import image_store
from microsandbox.runtime.builder_process import build
from microsandbox.store.files import partial_path
from microsandbox.store.home import Home
from microsandbox.template.public import host_memory_mib
from microsandbox.template.store import Description, TemplateStore
from tests.unit.image.image_building import Built, docker_files, entry, tar, tar_files

BARE = Description("tcg", 1, 512, "6.1.0", "7.2.0")
ONE, TWO, OTHER = "a1" * 16, "a2" * 16, "b0" * 16


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    return TemplateStore(Home.open())


@pytest.fixture
def publish(store):
    def publish(key, description=BARE, *, used=None):
        partial = partial_path(store.root / key)
        partial.mkdir(parents=True)
        (partial / "ram").write_bytes(b"ram" * 1000)
        template = store.publish(partial, key, description)
        if used is not None:
            os.utime(template.directory / "manifest", (used, used))
        return template

    return publish


async def listed():
    return [info.id for info in await Template.list()]


async def test_the_list_says_all_there_is_to_know(publish):
    template = publish(ONE, used=1000)
    assert await Template.list() == [
        TemplateInfo(
            id=ONE,
            image=None,
            manifest_digest=None,
            upper_size_mib=None,
            cpus=1,
            memory=512,
            accelerator="tcg",
            kernel="6.1.0",
            qemu_version="7.2.0",
            size_bytes=template.disk_bytes,
            created_at=template.created_at * 1000,
            last_used_at=1_000_000.0,
        )
    ]


async def test_an_image_is_named_as_long_as_it_has_a_name(store, publish, tmp_path):
    image = Built([tar(entry("file", b"content"))], name="app:1")
    (tmp_path / "image.tar").write_bytes(tar_files(docker_files(image)))
    await image_store().load(tmp_path / "image.tar")
    digest = image_store().get("app:1").manifest_digest
    publish(ONE, Description("tcg", 1, 512, "6.1.0", "7.2.0", digest, 64))
    publish(TWO, Description("tcg", 1, 512, "6.1.0", "7.2.0", "sha256:gone", 64))
    found = {
        info.id: (info.image, info.manifest_digest, info.upper_size_mib) for info in await Template.list()
    }
    assert found == {ONE: ("app:1", digest, 64), TWO: (None, "sha256:gone", 64)}


async def test_the_last_used_is_listed_first_and_the_damaged_not_at_all(publish):
    publish(ONE, used=1000)
    publish(TWO, used=3000)
    (publish(OTHER, used=2000).directory / "ram").unlink()
    assert await listed() == [TWO, ONE]


@pytest.mark.parametrize("id", [OTHER, "b", "b0b0"])
async def test_removing_takes_an_id_or_the_start_of_one(publish, id):
    publish(ONE), publish(OTHER)
    await Template.remove(id)
    assert await listed() == [ONE]


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("a", "2 templates start with a; give more of the id"),
        ("c", "template not found: c"),
        ("", "template not found: ''"),
        ("../" + ONE, f"template not found: ../{ONE}"),
    ],
)
async def test_what_is_not_one_template_is_not_removed(publish, id, reason):
    publish(ONE), publish(TWO)
    with pytest.raises(TemplateError) as caught:
        await Template.remove(id)
    assert str(caught.value) == reason
    assert len(await listed()) == 2


async def test_what_is_damaged_can_be_removed(store, publish):
    (publish(ONE).directory / "manifest").unlink()
    await Template.remove("a1")
    assert store.ids() == []


async def test_removing_all_leaves_the_logs_and_locks_of_builders(store, publish):
    (publish(ONE).directory / "ram").unlink()
    publish(TWO)
    (store.root / "logs").mkdir()
    with store.lock(ONE):
        await Template.remove_all()
    assert sorted(path.name for path in store.root.iterdir()) == [f".lock-{ONE}", "logs"]


async def test_a_home_without_templates_has_none(store):
    assert await Template.list() == []
    await Template.remove_all()
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("shape", "detail"),
    [
        ({"cpus": 0}, "cpus of a template must be 1 to 8, got 0"),
        ({"cpus": 9}, "cpus of a template must be 1 to 8, got 9"),
        ({"memory": 0}, "memory must be greater than 0"),
        (
            {"memory": 1 << 31},
            f"memory of {1 << 31} MiB is more than this host has ({host_memory_mib()} MiB)",
        ),
    ],
)
async def test_a_shape_that_cannot_be_is_refused(store, shape, detail):
    with pytest.raises(InvalidConfigError) as caught:
        await Template.build("no/such/image", **shape)
    assert caught.value.detail == detail
    assert not store.root.exists()


@pytest.mark.parametrize(("shape", "error"), [({"cpus": "1"}, TypeError), ({"memory": -1}, OverflowError)])
async def test_what_is_no_number_is_refused(store, shape, error):
    with pytest.raises(error):
        await Template.build(**shape)


async def test_a_builder_s_reason_is_the_error_s(store, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.json").write_text("{]")
    with pytest.raises(TemplateError, match=r"^invalid config: .*config\.json"):
        await build(["--cpus", "1", "--memory", "256"])
