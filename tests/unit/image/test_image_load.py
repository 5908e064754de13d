"""Loading archives: every form comes out the same, every wrong one leaves nothing behind."""

import gzip
import io
import json
import os
import subprocess
import tarfile

import pytest

from microsandbox.errors import ImageError, ImageNotFoundError, IoError, MicrosandboxError
from microsandbox.image.limits import Limits
from tests.unit.image.image_building import (
    ARCHITECTURE,
    OTHER_ARCHITECTURE,
    Built,
    busybox_layer,
    compress,
    content,
    digest,
    docker_files,
    entry,
    files_of,
    hard_link,
    layout_files,
    listing,
    new_store,
    pax_entry,
    rows_of,
    symlink,
    tar,
    tar_files,
    write_layout,
)

EMPTY = {"manifest": 0, "image_ref": 0, "config": 0, "layer": 0, "manifest_layer": 0}
CONFIG = {
    "Env": ["PATH=/bin", "A=b=c"],
    "Cmd": ["sh"],
    "Entrypoint": ["/bin/busybox"],
    "WorkingDir": "/etc",
    "User": "1000:5",
    "Labels": {"a": "b"},
    "StopSignal": "SIGUSR1",
    "ExposedPorts": {"80/tcp": {}},
    "Volumes": {"/data": {}},
}
UPPER = tar(entry("etc/motd", b"hello\n"), entry("etc/.wh.passwd", b""), hard_link("bin/ash", "bin/busybox"))


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path / "home")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def image(**options):
    return Built([busybox_layer(), UPPER], **({"config": CONFIG} | options))


def write(path, data):
    path.write_bytes(data)
    return path


SOURCES = {
    "docker": lambda d: write(d / "a", tar_files(docker_files(image(compress="none")))),
    "docker with compressed layers": lambda d: write(d / "a", tar_files(docker_files(image()))),
    "docker, gzip": lambda d: write(d / "a", gzip.compress(tar_files(docker_files(image())), 1)),
    "docker, zstd": lambda d: write(d / "a", compress(tar_files(docker_files(image())), "zstd")),
    "layout": lambda d: write(d / "a", tar_files(layout_files(image()))),
    "layout, gzip": lambda d: write(d / "a", gzip.compress(tar_files(layout_files(image())), 1)),
    "layout, zstd": lambda d: write(d / "a", compress(tar_files(layout_files(image())), "zstd")),
    "layout with zstd layers": lambda d: write(d / "a", tar_files(layout_files(image(compress="zstd")))),
    "layout with plain layers": lambda d: write(d / "a", tar_files(layout_files(image(compress="none")))),
    "layout with an index in the index": lambda d: write(
        d / "a", tar_files(layout_files(image(), nested=True))
    ),
    "layout directory": lambda d: write_layout(d / "layout", layout_files(image())),
    "stream": lambda d: io.BytesIO(tar_files(docker_files(image()))),
    "compressed stream": lambda d: io.BytesIO(gzip.compress(tar_files(layout_files(image())), 1)),
    "docker that is a layout as well": lambda d: write(
        d / "a", tar_files({**layout_files(image(name="latest")), **docker_files(image())})
    ),
}


@pytest.mark.parametrize("source", SOURCES)
async def test_every_form_of_archive_gives_the_same_image(source, store, home, tmp_path):
    assert await store.load(SOURCES[source](tmp_path)) == ["example.com/test:1"]
    record = store.get("example.com/test:1")
    assert (record.architecture, record.os, record.layer_count) == (ARCHITECTURE, "linux", 2)
    stored = store.by_digest(record.manifest_digest)
    found = listing(stored.rootfs)
    assert found["bin/busybox"][0] == "-rwxr-xr-x" and "bin/ash" in found and "etc/passwd" not in found
    assert content(stored.rootfs, "etc/motd") == b"hello\n"
    config = stored.config
    assert config.env == ("PATH=/bin", "A=b=c") and config.cmd == ("sh",)
    assert config.entrypoint == ("/bin/busybox",) and config.working_dir == "/etc" and config.user == "1000:5"
    assert config.labels == {"a": "b"} and config.stop_signal == "SIGUSR1"
    assert config.exposed_ports == ("80/tcp",) and config.volumes == ("/data",)
    assert [layer.diff_id for layer in stored.layers] == image().diff_ids_of_layers
    # Manifest, config and two layers as they came, and the image; nothing temporary.
    assert [name.split("/")[0] for name in files_of(home)] == ["blobs"] * 4 + ["rootfs"]
    for layer in stored.layers:
        blob = home / "cache" / "blobs" / "sha256" / layer.blob_digest.removeprefix("sha256:")
        assert digest(blob.read_bytes()) == layer.blob_digest
        assert blob.stat().st_size == layer.compressed_size


async def test_a_layout_keeps_the_manifest_as_it_came(store, tmp_path):
    await store.load(SOURCES["layout"](tmp_path))
    assert store.get("example.com/test:1").manifest_digest == image().digest


async def test_loading_twice_changes_nothing(store, home, tmp_path):
    for name in ("docker", "layout"):
        await store.load(SOURCES[name](tmp_path))
        before = {path: (home / "cache" / path).stat().st_ino for path in files_of(home) if "rootfs" in path}
        rows, records = rows_of(home), [(r.reference, r.manifest_digest, r.created_at) for r in store.list()]
        await store.load(SOURCES[name](tmp_path))
        assert rows_of(home) == rows
        assert [(r.reference, r.manifest_digest, r.created_at) for r in store.list()] == records
        assert {p: (home / "cache" / p).stat().st_ino for p in files_of(home) if "rootfs" in p} == before


async def test_two_stores_make_equal_bytes(tmp_path):
    found = []
    for name in ("one", "two"):
        made = new_store(tmp_path / name)
        await made.load(SOURCES["docker"](tmp_path))
        found.append(made.by_digest(made.list()[0].manifest_digest).rootfs.read_bytes())
    assert found[0] == found[1]


async def test_tags_name_the_first_image_and_lookups_do_not_mind_the_spelling(store, tmp_path):
    archive = write(tmp_path / "a", tar_files(docker_files(image(name=None), tags=["<none>:<none>"])))
    with pytest.raises(ImageError, match="docker archive image has no tags; pass --tag to name it"):
        await store.load(archive)
    assert await store.load(archive, tags=["me/tool", "me/tool:2"]) == ["me/tool", "me/tool:2"]
    assert store.get("docker.io/me/tool:latest").reference == "me/tool"
    assert store.inspect("me/tool:2").config.cmd == ("sh",)
    with pytest.raises(ImageNotFoundError, match="image not found: me/tool:3"):
        store.get("me/tool:3")
    with pytest.raises(ImageNotFoundError):
        store.get("not a reference")


async def test_all_images_of_an_archive_are_loaded_and_share_layers(store, home, tmp_path):
    base = busybox_layer()
    one, two = Built([base, UPPER], name="one:1"), Built([base], name="two:1", config={"Cmd": ["true"]})
    for number, files in enumerate((docker_files(one, two), layout_files(one, two))):
        assert await store.load(write(tmp_path / "a", tar_files(files)), tags=["extra"]) == [
            "one:1",
            "extra",
            "two:1",
        ], number
    assert rows_of(home)["layer"] == 2
    assert store.get("extra").manifest_digest == store.get("one:1").manifest_digest


async def test_a_layer_twice_in_one_image_is_applied_twice(store, tmp_path):
    twice = Built([UPPER_FILE, tar(entry(".wh.f", b"")), UPPER_FILE], name="twice:1")
    await store.load(write(tmp_path / "a", tar_files(layout_files(twice))))
    stored = store.by_digest(twice.digest)
    assert list(listing(stored.rootfs)) == ["", "f"] and len(stored.layers) == 3


UPPER_FILE = tar(entry("f", b"x"))


async def test_only_images_for_this_machine_are_loaded_from_a_layout(store, tmp_path):
    mine, other = image(), image(architecture=OTHER_ARCHITECTURE, name="other:1")
    archive = write(tmp_path / "a", tar_files(layout_files(other, mine)))
    assert await store.load(archive) == ["example.com/test:1"]
    nested = write(
        tmp_path / "b", tar_files(layout_files(image(architecture=OTHER_ARCHITECTURE), mine, nested=True))
    )
    assert await store.load(nested) == ["example.com/test:1"]
    for number, files in enumerate(
        (layout_files(other), layout_files(other, nested=True), docker_files(other))
    ):
        with pytest.raises(ImageError, match=f"platforms present: linux/{OTHER_ARCHITECTURE}"):
            await store.load(write(tmp_path / f"c{number}", tar_files(files)))


async def test_an_image_without_a_platform_is_taken(store, tmp_path):
    plain = image(architecture=None)
    assert await store.load(write(tmp_path / "a", tar_files(layout_files(plain)))) == ["example.com/test:1"]


async def test_an_image_without_layers_is_an_empty_tree(store, tmp_path):
    empty = Built([], name="scratch:1")
    await store.load(write(tmp_path / "a", tar_files(layout_files(empty))))
    assert list(listing(store.by_digest(empty.digest).rootfs)) == [""]


async def test_docker_links_equal_layers_to_the_first(store, tmp_path):
    twice = Built([UPPER_FILE, UPPER_FILE], name="twice:1", compress="none")
    files = docker_files(twice)
    listed = json.loads(files["manifest.json"])
    first = listed[0]["Layers"][0]
    listed[0]["Layers"][1] = "second/layer.tar"
    files["manifest.json"] = json.dumps(listed).encode()
    archive = tar_files(files, [symlink("second/layer.tar", f"../{first}")])
    assert await store.load(write(tmp_path / "a", archive)) == ["twice:1"]


async def test_events_come_in_order(store, tmp_path):
    events = []
    await store.load(SOURCES["layout"](tmp_path), progress=events.append)
    kinds = [event.event_type for event in events]
    assert kinds[0] == "resolved" and events[0].layer_count == 2
    assert kinds[-5:] == [
        "stitch_merging_trees", "stitch_writing_fsmeta", "stitch_writing_vmdk", "stitch_complete", "complete",
    ]  # fmt: skip
    for number in (0, 1):
        mine = [event for event in events if event.layer_index == number]
        steps = dict.fromkeys(event.event_type.removeprefix("layer_materialize_") for event in mine)
        assert list(steps) == ["started", "progress", "writing", "complete"]
        assert mine[-3].bytes_read == mine[-3].total_bytes


async def test_skopeo_and_umoci_archives_load(store, tmp_path):
    layout = write_layout(tmp_path / "l", layout_files(image(name="v1")))
    for kind, target in (
        ("oci-archive", "o.tar:example.com/skopeo:oci"),
        ("docker-archive", "d.tar:example.com/skopeo:docker"),
    ):
        subprocess.run(
            ["skopeo", "copy", "-q", "--insecure-policy", f"oci:{layout}:v1", f"{kind}:{tmp_path}/{target}"],
            check=True,
        )
        [reference] = await store.load(tmp_path / target.split(":")[0])
        assert reference.startswith("example.com/skopeo:")
        assert content(store.by_digest(store.get(reference).manifest_digest).rootfs, "etc/motd") == b"hello\n"


# What must not be loaded


def changed(files, **changes):
    """The files with some replaced (bytes), renamed or dropped (None); names with '__' for '/'."""
    found = dict(files)
    for name, value in changes.items():
        path = name.replace("__", "/").replace("_json", ".json").replace("oci_layout", "oci-layout")
        if value is None:
            del found[path]
        else:
            found[path] = value
    return found


def without_blob(files, which):
    return {
        name: body for name, body in files.items() if name != "blobs/sha256/" + which.removeprefix("sha256:")
    }


def with_blob(files, which, body):
    return {**files, "blobs/sha256/" + which.removeprefix("sha256:"): body}


def docker_manifest(**fields):
    files = docker_files(image())
    listed = json.loads(files["manifest.json"])
    listed[0] |= fields
    return {**files, "manifest.json": json.dumps(listed).encode()}


def docker_layer(layer):
    return docker_files(Built([layer], name="bad:1"))


IMAGE = image()
LAYOUT = layout_files(IMAGE)
LAYER = digest(IMAGE.packed[0])
LAYER_PATH = "blobs/sha256/" + LAYER.removeprefix("sha256:")
FLIPPED = IMAGE.packed[0][:100] + bytes([IMAGE.packed[0][100] ^ 1]) + IMAGE.packed[0][101:]
SYMLINKED = docker_files(Built([UPPER_FILE], name="bad:1"))
SYMLINKED_LAYER = next(name for name in SYMLINKED if name.endswith("layer.tar"))

WRONG = {
    "not an archive": (b"\x00\x01garbage" * 1000, "archive missing manifest.json or oci-layout"),
    "empty": (b"", "archive missing manifest.json or oci-layout"),
    "another tar": (tar(entry("README", b"hello")), "archive missing manifest.json or oci-layout"),
    "cut off": (tar_files(LAYOUT)[:5000], "truncated"),
    "gzip cut off": (gzip.compress(tar_files(LAYOUT))[:-500], "gzip data is truncated"),
    "zstd cut off": (compress(tar_files(LAYOUT), "zstd")[:-500], "zstd data is truncated"),
    "garbage behind": (tar_files(LAYOUT) + b"x" * 512, "trailing garbage"),
    "garbage behind gzip": (gzip.compress(tar_files(LAYOUT)) + b"x", "trailing garbage"),
    "traversal": (tar_files({**LAYOUT, "../x": b""}), 'path traversal in tar: "../x"'),
    "two of a name": (tar_files(LAYOUT, [entry("./index.json", b"{}")]), 'two entries named "index.json"'),
    "not JSON": (tar_files({"manifest.json": b"{"}), "manifest.json is not valid JSON"),
    "not UTF-8": (tar_files({"manifest.json": b'["\xff"]'}), "manifest.json is not valid JSON"),
    "nested JSON": (tar_files({"manifest.json": b"[" * 200_000}), "manifest.json is not valid JSON"),
    "no list": (tar_files({"manifest.json": b"{}"}), "not a list of images"),
    "no images": (tar_files({"manifest.json": b"[]"}), "docker archive manifest is empty"),
    "no config named": (tar_files(docker_manifest(Config=None)), "image without Config"),
    "config missing": (tar_files(docker_manifest(Config="c.json")), "docker archive missing config c.json"),
    "layer missing": (
        tar_files(docker_manifest(Layers=["x/layer.tar"] * 2)),
        "docker archive missing layer x/layer.tar",
    ),
    "fewer layers": (
        tar_files(docker_manifest(Layers=[])),
        "layer count mismatch: config has 2 diff_ids but archive manifest has 0 layers",
    ),
    "bad tag": (tar_files(docker_manifest(RepoTags=["UPPER"])), "invalid image reference UPPER: "),
    "tags not texts": (tar_files(docker_manifest(RepoTags=[1])), "must be lists of texts"),
    "blob path of another content": (
        tar_files({**docker_manifest(Config=LAYER_PATH), LAYER_PATH: IMAGE.config_bytes}),
        f"OCI blob digest mismatch: expected {LAYER}, got ",
    ),
    "layer path of another content": (
        tar_files({**docker_manifest(Layers=[LAYER_PATH, "x"]), LAYER_PATH: FLIPPED, "x": IMAGE.packed[1]}),
        f"OCI blob digest mismatch: expected {LAYER}, got {digest(FLIPPED)}",
    ),
    "one layer with two diff ids": (
        tar_files({**docker_manifest(Layers=["x", "x"]), "x": IMAGE.packed[0]}),
        "config gives layer x two different diff_ids",
    ),
    "link out of the archive": (
        tar_files(
            {name: body for name, body in SYMLINKED.items() if name != SYMLINKED_LAYER},
            [symlink(SYMLINKED_LAYER, "/etc/passwd")],
        ),
        "which is not a file of the archive",
    ),
    "link above the archive": (
        tar_files(
            {name: body for name, body in SYMLINKED.items() if name != SYMLINKED_LAYER},
            [symlink(SYMLINKED_LAYER, "../../../../etc/passwd")],
        ),
        "which is not a file of the archive",
    ),
    "device as layer": (
        tar_files(
            {name: body for name, body in SYMLINKED.items() if name != SYMLINKED_LAYER},
            [entry(SYMLINKED_LAYER, kind=tarfile.CHRTYPE, devmajor=1, devminor=5)],
        ),
        "is not a regular file",
    ),
    "no index": (tar_files(changed(LAYOUT, index_json=None)), "OCI layout missing index.json"),
    "index is no index": (
        tar_files(changed(LAYOUT, index_json=b'{"schemaVersion": 2}')),
        "neither an image manifest nor",
    ),
    "manifest blob missing": (
        tar_files(without_blob(LAYOUT, IMAGE.digest)),
        "OCI layout missing manifest blob ",
    ),
    "config blob missing": (
        tar_files(without_blob(LAYOUT, digest(IMAGE.config_bytes))),
        "OCI layout missing config blob ",
    ),
    "layer blob missing": (
        tar_files(without_blob(LAYOUT, LAYER)),
        f"OCI layout missing layer blob {LAYER_PATH}",
    ),
    "layer of another size": (
        tar_files(with_blob(LAYOUT, LAYER, b"x")),
        f"OCI blob {LAYER} size mismatch: expected",
    ),
    "layer with a flipped bit": (
        tar_files(with_blob(LAYOUT, LAYER, FLIPPED)),
        f"OCI layer digest mismatch: expected {LAYER}, got {digest(FLIPPED)}",
    ),
    "manifest with a flipped bit": (
        tar_files(with_blob(LAYOUT, IMAGE.digest, IMAGE.manifest_bytes.replace(b"   ", b"  \t", 1))),
        f"OCI blob digest mismatch: expected {IMAGE.digest}, got ",
    ),
    "other diff id": (
        tar_files(layout_files(image(diff_ids=[digest(b"a"), digest(IMAGE.layers[1])]))),
        f"digest mismatch for layer {LAYER}: expected {digest(b'a')}, got {digest(IMAGE.layers[0])}",
    ),
    "bad diff id": (
        tar_files(layout_files(image(diff_ids=["sha256:1", "x"]))),
        'invalid diff_id at layer 0: "sha256:1"',
    ),
    "more diff ids": (
        tar_files(layout_files(image(diff_ids=[digest(b"a")] * 3))),
        "layer count mismatch: config has 3 diff_ids but archive manifest has 2 layers",
    ),
    "sha512": (
        tar_files(
            changed(
                LAYOUT,
                index_json=json.dumps(
                    {"manifests": [{"mediaType": "", "size": 1, "digest": "sha512:" + "a" * 128}]}
                ).encode(),
            )
        ),
        "unsupported OCI digest algorithm: sha512",
    ),
    "digest with a path": (
        tar_files(
            changed(
                LAYOUT,
                index_json=json.dumps(
                    {"manifests": [{"mediaType": "", "size": 1, "digest": "sha256:../../../../etc/passwd"}]}
                ).encode(),
            )
        ),
        "invalid digest",
    ),
    "schema 1": (
        tar_files(changed(LAYOUT, index_json=b'{"schemaVersion": 1, "manifests": []}')),
        "schema 1",
    ),
    "layer traversal": (
        tar_files(docker_layer(tar(entry("../../x", b"")))),
        'path traversal in tar: "../../x"',
    ),
    "layer cut off": (
        tar_files(docker_layer(busybox_layer()[:2000])),
        "materialization failed for layer .*truncated",
    ),
    "layer is no tar": (tar_files(docker_layer(b"no tar at all" * 100)), "materialization failed for layer "),
    "layer link": (
        tar_files(docker_layer(tar(hard_link("a", "b")))),
        "materialization failed for layer .*hardlink target",
    ),
    "NUL in the config": (
        tar_files(docker_files(image(config={"Env": ["A=\0"]}))),
        "characters that no text may have",
    ),
    "surrogate in the config": (
        tar_files(docker_files(image(config={"User": "\ud800"}))),
        "characters that no text",
    ),
    "config of wrong types": (tar_files(docker_files(image(config={"Cmd": "sh"}))), "Cmd must be a list"),
}


@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_archive_is_refused_and_leaves_nothing(case, form, store, home, tmp_path):
    data, reason = WRONG[case]
    source = write(tmp_path / "archive", data) if form == "file" else io.BytesIO(data)
    with pytest.raises(ImageError, match=reason):
        await store.load(source)
    assert files_of(home) == [] and store.list() == [] and rows_of(home) == EMPTY
    assert list((home / "cache" / "staging").iterdir()) == []


async def test_one_bad_image_keeps_the_good_ones_out(store, home, tmp_path):
    good = await store.load(SOURCES["docker"](tmp_path))
    before = files_of(home), rows_of(home)
    bad = Built([tar(entry("../x", b""))], name="bad:1")
    with pytest.raises(ImageError, match="path traversal"):
        await store.load(
            write(tmp_path / "b", tar_files(docker_files(Built([UPPER_FILE], name="new:1"), bad)))
        )
    assert (files_of(home), rows_of(home)) == before
    assert store.get(good[0])


BOMB = Built([tar(entry("zeros", bytes(64 << 20)))], name="bomb:1")
LIMITED = [
    ({"total_bytes": 1 << 20}, tar_files(docker_files(BOMB)), "total extracted size exceeded"),
    ({"file_bytes": 1 << 20}, tar_files(docker_files(BOMB)), 'file too large: "zeros"'),
    ({"archive_bytes": 1 << 20}, gzip.compress(bytes(1024) + bytes(64 << 20), 1), "archive is too large"),
    ({"archive_bytes": 1 << 20}, compress(tar(entry("x", bytes(64 << 20))), "zstd"), "archive is too large"),
    ({"archive_entries": 3}, tar_files(LAYOUT), "archive has more than 3 entries"),
    ({"entries": 3}, tar_files(LAYOUT), "entry count exceeded"),
    ({"blob_bytes": 99}, tar_files(docker_files(image())), "archive layer .* is .* bytes; max is 99"),
    ({"layers": 1}, tar_files(LAYOUT), "image has 2 layers; max is 1"),
    (
        {},
        tar_files({"manifest.json": b" " * (16 << 20) + b"[]"}),
        "archive metadata entry manifest.json is 16777218 bytes; max is 16777216",
    ),
    (
        {},
        tar_files(docker_layer(tar(pax_entry("f", b"", {b"user.a": b"v" * (3 << 19)})))),
        "extended tar header of",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "data", "reason"), LIMITED, ids=[reason for *_, reason in LIMITED])
async def test_bombs_stop_at_their_limit(limits, data, reason, home, tmp_path):
    store = new_store(home, limits=Limits(**limits))
    with pytest.raises(ImageError, match=reason):
        await store.load(write(tmp_path / "a", data))
    assert files_of(home) == [] and rows_of(home) == EMPTY


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "index.json", "layer", "fifo"])
async def test_links_and_devices_in_a_layout_directory_are_not_followed(part, store, home, tmp_path):
    layout = write_layout(tmp_path / "layout", LAYOUT)
    path = layout / (LAYER_PATH if part in ("layer", "fifo") else part)
    path.rename(tmp_path / "moved")
    if part == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "moved")
    with pytest.raises(ImageError, match="image layout entry"):
        await store.load(layout)
    assert files_of(home) == []


async def test_what_cannot_be_read_is_an_io_error(store, tmp_path):
    with pytest.raises(IoError, match="archive .*missing cannot be read: No such file or directory"):
        await store.load(tmp_path / "missing")


async def test_without_squashfs_tools_the_package_is_named(store, home, tmp_path, monkeypatch):
    monkeypatch.setattr("microsandbox.tools._EXTRA_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MicrosandboxError, match="sqfstar was not found .* apt-get install squashfs-tools"):
        await store.load(SOURCES["docker"](tmp_path))
    assert files_of(home) == [] and rows_of(home) == EMPTY
