"""Looking images up, removing and pruning them, and what sandboxes have to do with it."""

import asyncio
import os
import time

import pytest

from microsandbox.errors import ImageError, ImageInUseError, ImageNotFoundError
from microsandbox.image.public import Image, image_store
from microsandbox.store.config import Config
from microsandbox.store.database import Database
from microsandbox.store.files import partial_path
from microsandbox.store.home import Home
from microsandbox.store.sandboxes import Reason, SandboxCatalog, Status
from microsandbox.template.store import Description, TemplateStore
from tests.unit.image.image_building import (
    Built,
    docker_files,
    entry,
    files_of,
    layout_files,
    new_store,
    rows_of,
    tar,
    tar_files,
)

BASE = tar(entry("base", b"b" * 5000))
ONE = Built([BASE, tar(entry("one", b"1"))], name="one:1", config={"Labels": {"k": "v"}})
TWO = Built([BASE, tar(entry("two", b"2"))], name="two:1")
NOTHING = {"manifest": 0, "image_ref": 0, "config": 0, "layer": 0, "manifest_layer": 0}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
async def store(home, tmp_path):
    found = new_store(home)
    (tmp_path / "a").write_bytes(tar_files(layout_files(ONE, TWO)))
    await found.load(tmp_path / "a", tags=["alias"])
    return found


@pytest.fixture
def sandboxes(home):
    return SandboxCatalog(Database(home / "db" / "msb.db"))


def age(home, seconds=7200):
    for path in (home / "cache").rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


async def test_list_has_the_newest_first(store):
    assert {record.reference for record in store.list()} == {"one:1", "two:1", "alias"}
    created = [record.created_at for record in store.list()]
    assert created == sorted(created, reverse=True)


async def test_removing_the_last_name_takes_what_only_it_needed(store, home):
    await store.remove("one:1")
    assert store.by_digest(ONE.digest).rootfs.is_file(), "another name keeps it"
    await store.remove("docker.io/library/alias:latest")
    with pytest.raises(ImageNotFoundError):
        store.by_digest(ONE.digest)
    assert rows_of(home) == {"manifest": 1, "image_ref": 1, "config": 1, "layer": 2, "manifest_layer": 2}
    assert len(files_of(home)) == 5
    await store.remove("two:1")
    assert rows_of(home) == NOTHING and files_of(home) == []
    with pytest.raises(ImageNotFoundError, match="image not found: two:1"):
        await store.remove("two:1")


async def test_an_image_in_use_stays_and_with_force_keeps_its_disk(store, home, sandboxes):
    row = sandboxes.create("box", "{}", {}, ONE.digest)
    sandboxes.create("abox", "{}", {}, ONE.digest)
    for name in ("one:1", "alias"):
        with pytest.raises(ImageInUseError, match=r"image in use by sandbox\(es\): abox, box"):
            await store.remove(name)
    await store.remove("one:1", force=True)
    await store.remove("alias", force=True)
    assert store.by_digest(ONE.digest).rootfs.is_file()
    with pytest.raises(ImageNotFoundError):
        store.get("one:1")
    report = await store.prune()
    assert (report.references, report.manifests) == (1, 1)
    for name in ("box", "abox"):
        row = sandboxes.get(name)
        sandboxes.end_run(row.id, row.run_id, Status.STOPPED, Reason.COMPLETED)
        sandboxes.remove(name, lambda: None)
    report = await store.prune()
    assert (report.references, report.manifests, report.layers, report.rootfs) == (0, 1, 2, 1)
    assert rows_of(home) == NOTHING and files_of(home) == []


@pytest.fixture
def templates(home):
    """Publishes a template that has an image mounted; without arguments the ids of those that are there."""
    found = TemplateStore(Home(home, Config()))

    def templates(key=None, digest=None):
        if key is not None:
            partial = partial_path(found.root / key)
            partial.mkdir(parents=True)
            (partial / "ram").write_bytes(b"x" * 100_000)
            found.publish(partial, key, Description("tcg", 1, 512, "6.1", "7.2", image=digest))
        return found.ids()

    return templates


async def test_templates_go_with_their_image(store, templates):
    templates("1" * 32, ONE.digest), templates("2" * 32, TWO.digest), templates("3" * 32)
    await store.remove("alias")
    assert templates() == ["1" * 32, "2" * 32, "3" * 32], "it has another name"
    await store.remove("one:1")
    assert templates() == ["2" * 32, "3" * 32]


async def test_templates_are_pruned_with_their_image_and_counted(store, templates, sandboxes):
    sandboxes.create("box", "{}", {}, ONE.digest)
    templates("1" * 32, ONE.digest), templates("2" * 32, TWO.digest)
    assert (await store.prune()).bytes_reclaimed > 100_000
    assert templates() == ["1" * 32]


async def test_prune_counts_what_it_removes_in_allocated_bytes(store, home, sandboxes):
    sandboxes.create("box", "{}", {}, TWO.digest)
    before = sum((home / "cache" / path).stat().st_blocks * 512 for path in files_of(home))
    report = await store.prune()
    after = sum((home / "cache" / path).stat().st_blocks * 512 for path in files_of(home))
    assert (report.references, report.manifests, report.layers, report.rootfs) == (2, 1, 1, 1)
    assert report.bytes_reclaimed == before - after > 0
    assert [record.reference for record in store.list()] == ["two:1"]
    assert (await store.prune()).bytes_reclaimed == 0


async def test_prune_collects_leftovers_when_they_are_old_and_never_lock_files(store, home, sandboxes):
    for digest in (ONE.digest, TWO.digest):
        sandboxes.create(f"box-{digest[7:12]}", "{}", {}, digest)
    cache = home / "cache"
    leftovers = [
        cache / "downloads" / f"{'a' * 64}.part",
        cache / "staging" / ".partial-1-x-load" / "0" / "layer-0",
        cache / "blobs" / "sha256" / ("b" * 64),
        cache / "rootfs" / f".partial-1-ab-{'c' * 64}.squashfs",
    ]
    lock = cache / "locks" / "blob-1.lock"
    for path in (*leftovers, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10000)
    kept = set(files_of(home)) - {str(path.relative_to(cache)) for path in leftovers}
    await store.prune()
    assert all(path.exists() for path in leftovers), "they may be somebody's work"
    age(home)
    report = await store.prune()
    assert report.bytes_reclaimed >= 40000 and set(files_of(home)) == kept and lock.exists()
    assert list((cache / "staging").iterdir()) == []
    assert store.by_digest(ONE.digest).rootfs.is_file()


async def test_prune_leaves_a_download_that_goes_on(store, home):
    from microsandbox.store.files import FileLock

    path = home / "cache" / "downloads" / f"{'a' * 64}.part"
    path.write_bytes(b"x")
    age(home)
    with FileLock(store._blobs.lock("blob", f"sha256:{'a' * 64}")):
        await store.prune()
        assert path.exists()
    await store.prune()
    assert not path.exists()


async def test_an_image_whose_file_was_lost_is_not_cached(store):
    assert (await store.pull("one:1", policy="never")).manifest_digest == ONE.digest
    stored = store.by_digest(ONE.digest)
    with stored.rootfs.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ImageNotFoundError):
        store.by_digest(ONE.digest)
    with pytest.raises(ImageError, match="^image error: image not cached: one:1$"):
        await store.pull("one:1", policy="never")


async def test_a_cached_pull_asks_nobody_and_tells_so(store):
    events = []
    stored = await store.pull("docker.io/library/one:1", progress=events.append)
    assert stored.manifest_digest == ONE.digest and stored.reference == "docker.io/library/one:1"
    assert [event.event_type for event in events] == ["resolving", "resolved", "complete"]
    assert (events[1].layer_count, events[1].manifest_digest) == (2, ONE.digest)
    assert events[1].total_download_bytes == sum(len(layer) for layer in ONE.packed)
    # Its digest is a name too, in whatever repository.
    assert (await store.pull(f"elsewhere.example.com/x@{ONE.digest}")).rootfs == stored.rootfs


async def test_what_cannot_be_pulled_is_said_before_anything_happens(store):
    with pytest.raises(ValueError, match="invalid pull policy 'sometimes'"):
        await store.pull("one:1", policy="sometimes")
    with pytest.raises(ImageError, match="invalid image reference: "):
        await store.pull("One:1")
    events = []
    with pytest.raises(ImageError, match="image not cached: missing"):
        await store.pull("missing", policy="never", progress=events.append)
    assert events == []


async def test_a_failed_commit_takes_the_files_back(home, tmp_path, monkeypatch):
    store = new_store(home)
    (tmp_path / "a").write_bytes(tar_files(docker_files(ONE)))

    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(store._catalog.__class__, "record", fail)
    with pytest.raises(RuntimeError):
        await store.load(tmp_path / "a")
    assert files_of(home) == [] and rows_of(home) == NOTHING


# The public face


@pytest.fixture
async def public(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(home))
    (tmp_path / "a").write_bytes(tar_files(layout_files(ONE)))
    assert await Image.load(tmp_path / "a", tags=["t"]) == ["one:1", "t"]


async def test_handles_have_the_documented_attributes(public):
    [first, second] = await Image.list()
    assert {first.reference, second.reference} == {"one:1", "t"}
    handle = await Image.get("one:1")
    assert handle.manifest_digest == ONE.digest and handle.os == "linux" and handle.layer_count == 2
    assert handle.size_bytes == sum(len(layer) for layer in ONE.packed)
    assert time.time() * 1000 - 60_000 < handle.created_at <= handle.last_used_at <= time.time() * 1000
    detail = await handle.inspect()
    assert detail.handle.reference == "one:1"
    assert detail.config.labels == {"k": "v"} and detail.config.env == [] and detail.config.cmd is None
    assert [layer.position for layer in detail.layers] == [0, 1]
    assert [layer.diff_id for layer in detail.layers] == ONE.diff_ids_of_layers
    assert detail.layers[0].compressed_size_bytes == len(ONE.packed[0])
    assert detail.layers[0].erofs_size_bytes is None


async def test_remove_and_prune_through_the_public_face(public):
    await (await Image.get("t")).remove()
    report = await Image.prune()
    assert (report.image_refs_removed, report.manifests_removed, report.layers_removed) == (1, 1, 2)
    assert (report.fsmeta_removed, report.vmdk_removed) == (1, 0) and report.bytes_reclaimed > 0
    assert await Image.list() == []
    for call in (Image.get, Image.inspect, Image.remove):
        with pytest.raises(ImageNotFoundError):
            await call("one:1")


async def test_a_pull_of_what_is_there_gives_a_handle(public):
    assert (await Image.pull("one:1", policy="never")).layer_count == 2


def test_sources_of_sandboxes():
    assert Image.oci("alpine", upper_size_mib=5)._upper_size_mib == 5
    assert Image.bind("/srv")._path == "/srv"
    assert Image.disk("/a.raw", fstype="ext4")._fstype == "ext4"
    with pytest.raises(TypeError, match="No constructor defined for Image"):
        Image()


def test_each_home_has_its_own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "x"))
    first = image_store()
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "y"))
    assert image_store() is not first and image_store().list() == []
    assert asyncio.run(Image.list()) == []
