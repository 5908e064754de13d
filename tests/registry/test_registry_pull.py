"""Pulling from a real docker-registry, filled by skopeo."""

import asyncio
import subprocess
import sys

import pytest

from microsandbox.errors import ImageError, ImagePullFailedError
from tests.unit.image.image_building import (
    OTHER_ARCHITECTURE,
    Built,
    busybox_layer,
    content,
    entry,
    files_of,
    listing,
    new_store,
    rows_of,
    tar,
)

BASE = busybox_layer()
ONE = Built([BASE, tar(entry("one", b"1" * 700_000))], name="one:1", config={"Cmd": ["sh"]})
TWO = Built([BASE, tar(entry("two", b"2"))], name="two:1")


async def test_an_image_is_pulled_and_can_be_read(store, push):
    reference = push("team/one", ONE)
    stored = await store.pull(reference)
    assert stored.manifest_digest == ONE.digest and stored.config.cmd == ("sh",)
    found = listing(stored.rootfs)
    assert found["bin/sh"][2].endswith("-> busybox") and found["one"][2].startswith("700000")
    assert content(stored.rootfs, "bin/busybox").startswith(b"\x7fELF")
    assert store.get(reference).manifest_digest == ONE.digest
    assert store.by_digest(ONE.digest).rootfs == stored.rootfs


async def test_events_come_in_the_documented_order(store, push):
    events, reference = [], push("events", ONE)
    await store.pull(reference, progress=events.append)
    kinds = [event.event_type for event in events]
    assert kinds[:2] == ["resolving", "resolved"] and events[0].reference == reference
    assert (events[1].layer_count, events[1].manifest_digest) == (2, ONE.digest)
    assert events[1].total_download_bytes == sum(len(layer) for layer in ONE.packed)
    assert kinds[-5:] == [
        "stitch_merging_trees", "stitch_writing_fsmeta", "stitch_writing_vmdk", "stitch_complete", "complete",
    ]  # fmt: skip
    assert events[-1].layer_count == 2 and events[-5].layer_count == 2
    for index, layer in enumerate(ONE.packed):
        mine = [event for event in events if event.layer_index == index]
        order = list(dict.fromkeys(event.event_type.removeprefix("layer_") for event in mine))
        assert order == [
            "download_progress", "download_complete", "materialize_started", "materialize_progress",
            "materialize_writing", "materialize_complete",
        ]  # fmt: skip
        downloads = [event for event in mine if event.event_type == "layer_download_progress"]
        assert downloads[-1].downloaded_bytes == downloads[-1].total_bytes == len(layer)
        assert mine[-1].diff_id == ONE.diff_ids_of_layers[index]


async def test_pulling_again(store, push):
    reference = push("again", ONE)
    first = await store.pull(reference)

    async def kinds(**options):
        events = []
        assert (await store.pull(reference, progress=events.append, **options)).manifest_digest == ONE.digest
        return [event.event_type for event in events if "progress" not in event.event_type]

    inode = first.rootfs.stat().st_ino
    assert await kinds() == ["resolving", "resolved", "complete"]
    assert await kinds(policy="never") == ["resolving", "resolved", "complete"]
    again = ["resolving", "resolved", *["layer_materialize_complete"] * 2, "complete"]
    assert await kinds(policy="always") == again
    assert first.rootfs.stat().st_ino == inode
    assert (await kinds(force=True)).count("layer_download_complete") == 2
    assert first.rootfs.stat().st_ino != inode


async def test_a_tag_that_moved_is_followed_only_when_asked(store, push, home):
    reference = push("moved", ONE)
    await store.pull(reference)
    assert push("moved", TWO) == reference
    assert (await store.pull(reference)).manifest_digest == ONE.digest
    events = []
    assert (
        await store.pull(reference, policy="always", progress=events.append)
    ).manifest_digest == TWO.digest
    downloaded = [event.layer_index for event in events if event.event_type == "layer_download_complete"]
    assert downloaded == [1], "the base is there already"
    assert store.get(reference).manifest_digest == TWO.digest
    await store.prune()
    assert rows_of(home)["manifest"] == 0 and files_of(home) == []


async def test_by_digest_and_from_an_index(store, push, real_registry):
    other = Built([tar(entry("other", b""))], name="one:1", architecture=OTHER_ARCHITECTURE)
    reference = push("indexed", ONE, other, nested=True)
    assert (await store.pull(reference)).manifest_digest == ONE.digest
    pinned = f"{real_registry}/indexed@{ONE.digest}"
    assert (await store.pull(pinned, policy="always")).manifest_digest == ONE.digest
    lonely = push("lonely", other)
    with pytest.raises(ImagePullFailedError, match=f"no manifest for platform linux/.* in {lonely}"):
        await store.pull(lonely)


async def test_what_the_registry_does_not_have(store, real_registry, home):
    with pytest.raises(
        ImagePullFailedError,
        match=f"image error: registry error: {real_registry}/nothing: 404 Not Found for manifests/latest: "
        "MANIFEST_UNKNOWN: manifest unknown",
    ):
        await store.pull(f"{real_registry}/nothing")
    assert files_of(home) == [] and store.list() == []
    with pytest.raises(ImageError, match="image not cached"):
        await store.pull(f"{real_registry}/nothing", policy="never")


PULL = """
import asyncio, sys
from pathlib import Path
from microsandbox.store.config import Config, DatabaseConfig
from microsandbox.store.database import Database
from microsandbox.store.home import Home
from microsandbox.image.store import ImageStore

home = Home(Path(sys.argv[1]), Config())
store = ImageStore(home, Database(home.database, DatabaseConfig(busy_timeout_secs=30)))
sys.stdin.readline()
print(asyncio.run(store.pull(sys.argv[2])).manifest_digest)
"""


def test_processes_that_pull_at_once_download_each_layer_once(registry, home):
    """Two images that share a layer, each pulled by two processes."""
    references = [registry.serve(ONE, "team/one"), registry.serve(TWO, "team/two")] * 2
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PULL, str(home), reference],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for reference in references
    ]  # fmt: skip
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process, image in zip(processes, [ONE, TWO, ONE, TWO], strict=True):
        out, err = process.communicate(timeout=60)
        assert out.strip() == image.digest, err
    for layer in {*ONE.manifest["layers"][0].values(), *TWO.manifest["layers"][1].values()}:
        if str(layer).startswith("sha256:"):
            assert registry.fetched(layer) == 1
    store = new_store(home)
    assert content(store.by_digest(TWO.digest).rootfs, "two") == b"2"
    assert rows_of(home)["layer"] == 3


async def test_tasks_of_one_process_share_a_pull_too(registry, store):
    reference = registry.serve(ONE)
    results = await asyncio.gather(*(store.pull(reference) for _ in range(5)))
    assert {stored.manifest_digest for stored in results} == {ONE.digest}
    assert registry.fetched("/blobs/") == 3


async def test_a_prune_in_the_middle_makes_the_pull_start_over(registry, store, home):
    """The shared layer is deleted after the pull has read it and before it is recorded."""
    await store.pull(registry.serve(ONE, "team/one"))
    pruned = []

    def prune(event):
        if event.event_type == "stitch_writing_vmdk" and not pruned:
            pruned.append(store._pruner.prune())

    stored = await store.pull(registry.serve(TWO, "team/two"), progress=prune)
    assert pruned[0].manifests == 1 and pruned[0].layers == 2
    assert content(stored.rootfs, "two") == b"2"
    assert registry.fetched(TWO.manifest["layers"][0]["digest"]) == 2
    assert [record.manifest_digest for record in store.list()] == [TWO.digest]
    for layer in stored.layers:
        assert (home / "cache" / "blobs" / "sha256" / layer.blob_digest[7:]).is_file()
