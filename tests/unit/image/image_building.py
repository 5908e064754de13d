"""Layers, archives and layouts for the tests of images, and eyes to look at what was made of them.

Tars are written by Python's tarfile, squashfs is read by squashfs-tools: neither is the code under test.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from microsandbox.image.store import ImageStore
from microsandbox.store.config import Config
from microsandbox.store.database import Database
from microsandbox.store.home import Home

BUSYBOX = Path("/bin/busybox")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
OTHER_ARCHITECTURE = {"amd64": "arm64", "arm64": "amd64"}[ARCHITECTURE]


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def new_store(directory, **options):
    """A store in a home of its own."""
    home = Home(Path(directory), Config())
    return ImageStore(home, Database(home.database), **options)


def entry(name, content=None, *, kind=tarfile.REGTYPE, link="", xattrs=None, **fields):
    """A tar entry and its content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o644
    if content is not None:
        info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    if xattrs:
        info.pax_headers = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in xattrs.items()
        }
    return info, content


def directory(name, mode=0o755, **fields):
    return entry(name, kind=tarfile.DIRTYPE, mode=mode, **fields)


def pax_entry(name, content, xattrs):
    """An entry with attributes of any bytes, which tarfile passes through as surrogates."""
    return entry(name, content, xattrs={key.decode(): value for key, value in xattrs.items()})


def symlink(name, target):
    return entry(name, kind=tarfile.SYMTYPE, link=target)


def hard_link(name, target):
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def tar(*entries, format=tarfile.PAX_FORMAT):
    """The bytes of a tar with these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if content is not None else None)
    return buffer.getvalue()


def busybox_layer():
    """A layer that a machine can boot."""
    return tar(
        directory("bin"),
        entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        symlink("bin/sh", "busybox"),
        directory("etc"),
        entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
    )


def raw_header(name, *, size=0, kind=b"0", link=b"", prefix=b"", magic=b"ustar\x0000", **fields):
    """One header block, field by field: for what tarfile refuses to write."""
    values = {"mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0", "mtime": b"00000000000\0"}
    values |= fields
    stated = size if isinstance(size, bytes) else b"%011o\0" % size
    block = (
        name[:100].ljust(100, b"\0")
        + values["mode"]
        + values["uid"]
        + values["gid"]
        + stated
        + values["mtime"]
        + b" " * 8
        + kind
        + link.ljust(100, b"\0")
        + magic
        + bytes(64)
        + b"0000000\0" * 2
        + prefix.ljust(155, b"\0")
        + bytes(12)
    )
    assert len(block) == 512
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data):
    return data + bytes(-len(data) % 512)


END = bytes(1024)


@dataclass
class Built:
    """An image: layers as plain tars, bottom first, and how they are stored."""

    layers: list[bytes]
    config: dict = field(default_factory=dict)
    compress: str = "gzip"
    name: str | None = "example.com/test:1"
    architecture: str | None = ARCHITECTURE
    diff_ids: list[str] | None = None
    blobs: dict[str, bytes] = field(init=False)

    def __post_init__(self):
        packed = [compress(layer, self.compress) for layer in self.layers]
        self.packed = packed
        config = {
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids or [digest(one) for one in self.layers]},
        }
        if self.architecture:
            config["architecture"] = self.architecture
        self.config_bytes = json.dumps(config).encode()
        self.manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(self.config_bytes, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(one, "application/vnd.oci.image.layer.v1.tar+gzip") for one in packed],
        }
        # Unusual white space: a digest is that of the bytes as served.
        self.manifest_bytes = json.dumps(self.manifest, indent=3).encode()
        self.blobs = {digest(one): one for one in (*packed, self.config_bytes, self.manifest_bytes)}

    @property
    def digest(self):
        return digest(self.manifest_bytes)

    @property
    def diff_ids_of_layers(self):
        return [digest(layer) for layer in self.layers]

    def descriptor(self, *, platform=True):
        found = descriptor(self.manifest_bytes, self.manifest["mediaType"])
        if platform and self.architecture:
            found["platform"] = {"os": "linux", "architecture": self.architecture}
        if self.name:
            found["annotations"] = {"org.opencontainers.image.ref.name": self.name}
        return found


def descriptor(content, media_type):
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def compress(data, how):
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if how == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(data)
    return data


def layout_files(*images, nested=False):
    """The files of an OCI layout."""
    index = {"schemaVersion": 2, "manifests": [image.descriptor() for image in images]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    for image in images:
        for name, content in image.blobs.items():
            files["blobs/sha256/" + name.removeprefix("sha256:")] = content
    if nested:
        inner = json.dumps({**index, "mediaType": "application/vnd.oci.image.index.v1+json"}).encode()
        outer = descriptor(inner, "application/vnd.oci.image.index.v1+json")
        outer["annotations"] = {"org.opencontainers.image.ref.name": images[0].name}
        files["blobs/sha256/" + digest(inner).removeprefix("sha256:")] = inner
        index = {"schemaVersion": 2, "manifests": [outer]}
    files["index.json"] = json.dumps(index).encode()
    return files


def docker_files(*images, tags=None):
    """The files of a docker save archive."""
    files, listing = {}, []
    for image in images:
        paths = []
        for layer in image.packed:
            paths.append(f"{hashlib.sha256(layer).hexdigest()}/layer.tar")
            files[paths[-1]] = layer
        config = hashlib.sha256(image.config_bytes).hexdigest() + ".json"
        files[config] = image.config_bytes
        names = tags if tags is not None else [image.name] if image.name else None
        listing.append({"Config": config, "RepoTags": names, "Layers": paths})
    files["manifest.json"] = json.dumps(listing).encode()
    return files


def tar_files(files, extra=()):
    return tar(*(entry(name, content) for name, content in files.items()), *extra)


def write_layout(directory, files):
    for name, content in files.items():
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path(directory)


def listing(squashfs):
    """``path: (mode, owner, rest of the line)`` of everything in the image; the root is ``""``."""
    output = subprocess.run(
        ["unsquashfs", "-lln", squashfs],
        capture_output=True,
        check=True,
        env={"TZ": "UTC", "PATH": os.environ["PATH"]},
    ).stdout
    found = {}
    for line in output.decode("utf-8", "surrogateescape").splitlines():
        head, here, path = line.partition(" squashfs-root")
        if not here:
            continue  # the rest of a name with a line end
        mode, owner, rest = head.split(None, 2)
        path, arrow, target = path.partition(" -> ")
        found[path.removeprefix("/")] = (mode, owner, " ".join(rest.split()) + arrow + target)
    return found


def content(squashfs, path):
    return subprocess.run(["unsquashfs", "-cat", squashfs, path], capture_output=True, check=True).stdout


def unpack(squashfs, target):
    subprocess.run(
        ["unsquashfs", "-quiet", "-no-progress", "-d", target, squashfs], capture_output=True, check=True
    )
    return Path(target)


def files_of(store_home):
    """Every file below the cache but locks."""
    cache = Path(store_home) / "cache"
    return sorted(
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and path.parent.name != "locks"
    )


def rows_of(store_home):
    """How many rows the image tables have."""
    with Database(Path(store_home) / "db" / "msb.db").read() as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("manifest", "image_ref", "config", "layer", "manifest_layer")
        }
