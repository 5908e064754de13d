"""Images for tests, made from Debian's busybox-static: small, real, and different on request."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

from microsandbox.vmm.architecture import host_architecture

BUSYBOX = Path("/bin/busybox")
REFERENCE = "test/busybox:latest"
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndemo:x:1000:1000::/home/demo:/bin/sh\n",
    "etc/group": "root:x:0:\ndemo:x:1000:\naudio:x:63:demo\n",
    "etc/os-release": 'NAME="busybox test"\n',
}
_DIRECTORIES = {"root": 0o700, "home": 0o755, "home/demo": 0o755, "tmp": 0o1777, "var": 0o755, "work": 0o755}


def busybox_archive(target, *, config=None, files=None, without=(), reference=REFERENCE):
    """Write a ``docker save`` archive. ``config`` is the image's "config"; ``without`` leaves out paths."""
    layer = _layer({**_FILES, **(files or {})}, without)
    defaults = {"Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"], "Cmd": ["sh"]}
    return docker_archive(target, layer, reference, {**defaults, **(config or {})})


def docker_archive(target, layer, reference, config):
    """Write a ``docker save`` archive of one layer, a tar as bytes."""
    digest = hashlib.sha256(layer).hexdigest()
    document = {
        "architecture": host_architecture().oci,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    content = json.dumps(document).encode()
    name = f"{hashlib.sha256(content).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        for path, data in (
            (name, content),
            (f"{digest}/layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add(archive, path, data, 0o644)
    return Path(target)


def _layer(files, without):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for path in ("bin", "sbin", "usr", "usr/bin", "usr/sbin", "etc"):
            _add_directory(layer, path, 0o755)
        for path, mode in _DIRECTORIES.items():
            _add_directory(layer, path, mode, owner=1000 if path == "home/demo" else 0)
        if "bin/busybox" not in without:
            _add(layer, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
            listing = subprocess.run([BUSYBOX, "--list-full"], check=True, capture_output=True, text=True)
            for applet in listing.stdout.split():
                if applet not in without and applet != "bin/busybox":
                    entry = tarfile.TarInfo(applet)
                    entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
                    layer.addfile(entry)
        for path, text in files.items():
            if path not in without:
                _add(layer, path, text.encode(), 0o755 if text.startswith("#!") else 0o644)
    return buffer.getvalue()


def _add(archive, path, data, mode):
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def _add_directory(archive, path, mode, owner=0):
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    entry.uid = entry.gid = owner
    archive.addfile(entry)
