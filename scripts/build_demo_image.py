#!/usr/bin/env python3
"""Build the demo image: this host's Debian or Ubuntu release, minimal, with Python, as an OCI archive.

    build_demo_image.py OUTPUT.tar

The packages come from the host's own apt sources by mmdebstrap; the archive (OCI image layout in a tar) is
written here. Needs no container engine. What users of the image see: Python 3 as the command, a user
``demo``, UTF-8.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REFERENCE = "microsandbox/demo:latest"
PACKAGES = "python3-minimal,libpython3-stdlib,busybox-static,ca-certificates"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CHUNK = 1 << 20
#: Packages without what a container image has no use for, as Debian's own slim images are made.
TRIMMED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def apt_sources() -> list[str]:
    """The host's apt sources: what can be reached from here is known there."""
    candidates = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    sources = []
    for path in candidates:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            if "debian" in text or "ubuntu" in text:
                sources.append(str(path))
    if not sources:
        sys.exit("no Debian or Ubuntu apt sources were found in /etc/apt: the demo image is made from them")
    return sources


def build_rootfs(target: Path) -> None:
    """Run mmdebstrap; its messages go to the terminal."""
    release = platform.freedesktop_os_release()
    command = ["mmdebstrap", "--variant=minbase", "--quiet", f"--include={PACKAGES}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in TRIMMED]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    command += ['--customize-hook=chroot "$1" useradd --create-home --shell /bin/sh demo']
    command += ['--customize-hook=rm -rf "$1"/var/cache/* "$1"/var/log/*']
    command += [release["VERSION_CODENAME"], str(target), *apt_sources()]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "1700000000")}
    subprocess.run(command, check=True, env=environment)


def write_blob(layout: tarfile.TarFile, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    add(layout, f"blobs/sha256/{digest}", content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def add(layout: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    layout.addfile(entry, io.BytesIO(content))


def compress(rootfs: Path, layer: Path) -> tuple[str, str]:
    """Gzip the layer; digests of the plain and of the compressed bytes."""
    plain, packed = hashlib.sha256(), hashlib.sha256()
    with (
        rootfs.open("rb") as source,
        layer.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as target,
    ):
        while piece := source.read(CHUNK):
            plain.update(piece)
            target.write(piece)
    with layer.open("rb") as file:
        while piece := file.read(CHUNK):
            packed.update(piece)
    return plain.hexdigest(), packed.hexdigest()


def write_archive(rootfs: Path, layer: Path, target: Path) -> None:
    """An OCI image layout (image-spec, image-layout.md) with one image."""
    architecture = ARCHITECTURES[platform.machine()]
    diff_id, digest = compress(rootfs, layer)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["python3"],
            "Labels": {"org.opencontainers.image.title": "microsandbox demo"},
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
    }
    media = "application/vnd.oci.image"
    with tarfile.open(target, "w") as layout:
        add(layout, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        layout.add(layer, f"blobs/sha256/{digest}", filter=anonymous)
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{media}.manifest.v1+json",
            "config": {
                "mediaType": f"{media}.config.v1+json",
                **write_blob(layout, json.dumps(config).encode()),
            },
            "layers": [
                {
                    "mediaType": f"{media}.layer.v1.tar+gzip",
                    "digest": f"sha256:{digest}",
                    "size": layer.stat().st_size,
                }
            ],
        }
        entry = {"mediaType": manifest["mediaType"], **write_blob(layout, json.dumps(manifest).encode())}
        entry["platform"] = {"os": "linux", "architecture": architecture}
        entry["annotations"] = {"org.opencontainers.image.ref.name": REFERENCE}
        index = {"schemaVersion": 2, "mediaType": f"{media}.index.v1+json", "manifests": [entry]}
        add(layout, "index.json", json.dumps(index).encode())


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    output = Path(sys.argv[1]).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".demo-") as scratch:
        names = ("rootfs.tar", "layer.tar.gz", "image.tar")
        rootfs, layer, archive = (Path(scratch) / name for name in names)
        build_rootfs(rootfs)
        write_archive(rootfs, layer, archive)
        archive.rename(output)
    print(f"{output}: {output.stat().st_size >> 20} MiB")


if __name__ == "__main__":
    main()
