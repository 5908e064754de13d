"""``templates/KEY/{ram,state,manifest}``, and ``upper`` where an image is mounted: complete or absent.

    ram     the guest's memory, sparse; mapped privately by every machine that goes on from it
    state   the state of its devices
    upper   the writable layer as the guest last wrote it; each sandbox gets a copy

A template is never changed. One that is not what its manifest says is taken away, and built again when it is
next of use. The manifest's own time of change is when the template was last used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from microsandbox.errors import TemplateError
from microsandbox.store.files import (
    PARTIAL_PREFIX,
    FileLock,
    partial_path,
    remove_leftovers,
    remove_tree,
    sparse_digest,
    write_atomically,
)
from microsandbox.store.home import Home

#: Templates that no sandbox used for that many seconds are collected, and the oldest above so many bytes.
UNUSED_FOR, MAX_BYTES = 14 * 86400.0, 4 << 30
#: Seconds for which a failed build is not tried again.
RETRY_AFTER = 3600.0
RAM, STATE, UPPER = "ram", "state", "upper"
_MANIFEST, _LOCK = "manifest", ".lock"
_KEY = re.compile(r"[0-9a-f]{32}")
_TOUCH_INTERVAL = 3600.0
_MAX_MANIFEST_BYTES = 64 << 10


class Description(Struct, frozen=True):
    """What people want to know of a template. ``image`` is the digest of the mounted image's manifest."""

    accelerator: str
    cpus: int
    memory_mib: int
    kernel: str
    qemu: str
    image: str | None = None
    upper_size_mib: int | None = None


class StoredTemplate(Struct, frozen=True):
    """A complete template."""

    key: str
    directory: Path
    description: Description
    created_at: float

    @property
    def ram(self) -> Path:
        return self.directory / RAM

    @property
    def state(self) -> Path:
        return self.directory / STATE

    @property
    def upper(self) -> Path:
        return self.directory / UPPER

    @property
    def used_at(self) -> float:
        """Unix seconds."""
        return (self.directory / _MANIFEST).stat().st_mtime

    @property
    def disk_bytes(self) -> int:
        """What it occupies."""
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(self.directory))

    def touch(self) -> None:
        """Remember that it is of use."""
        with suppress(OSError):
            if time.time() - self.used_at > _TOUCH_INTERVAL:
                os.utime(self.directory / _MANIFEST)


class TemplateStore:
    """The templates of one home. Every method may be called while other processes do the same."""

    def __init__(self, home: Home) -> None:
        self.root = home.templates

    def find(self, key: str) -> StoredTemplate | None:
        """The template of that key, if it is whole. One that is damaged is taken away."""
        directory = self.root / key
        if not directory.is_dir():
            return None
        template = _read(directory)
        if template is None:
            self.discard(key)
        return template

    def peek(self, key: str) -> StoredTemplate | None:
        """As find(), for those who only look: nothing is taken away."""
        return next((template for template in self.all() if template.key == key), None)

    def all(self) -> list[StoredTemplate]:
        """Those that are whole, the last used first."""
        found = []
        for directory in self._directories():
            with suppress(FileNotFoundError):  # it is being taken away
                if (template := _read(directory)) is not None:
                    found.append((template.used_at, template))
        return [template for _, template in sorted(found, key=lambda pair: -pair[0])]

    def ids(self) -> list[str]:
        """The keys of all that is there, whole or damaged."""
        return sorted(path.name for path in self._directories())

    def resolve(self, prefix: str) -> str:
        """The only key that starts so. Raises TemplateError when there is none, or several."""
        found = [key for key in self.ids() if key.startswith(prefix)]
        if not prefix or not found:
            raise TemplateError(f"template not found: {prefix or repr(prefix)}")
        if len(found) > 1:
            raise TemplateError(f"{len(found)} templates start with {prefix}; give more of the id")
        return found[0]

    def lock(self, key: str) -> FileLock:
        """What a builder of that template holds."""
        return FileLock(self.root / f"{_LOCK}-{key}")

    def publish(self, partial: Path, key: str, description: Description) -> StoredTemplate:
        """Make ``partial``, a directory of partial_path(), the template of that key. Flushes its files."""
        files = {}
        for path in sorted(partial.iterdir()):
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = sparse_digest(file.fileno())
                files[path.name] = {**_stamp(os.fstat(file.fileno())), "sha256": digest}
        document = {
            "key": key,
            "description": to_builtins(description),
            "created_at": time.time(),
            "files": files,
        }
        body = json.dumps(document, sort_keys=True)
        signed = {"template": document, "sha256": hashlib.sha256(body.encode()).hexdigest()}
        write_atomically(partial / _MANIFEST, json.dumps(signed, indent=1).encode(), durable=True)
        self.discard(key)
        partial.rename(self.root / key)
        self._failure(key).unlink(missing_ok=True)
        template = _read(self.root / key)
        if template is None:
            raise TemplateError(f"the template {key} was damaged while it was written")
        return template

    def discard(self, key: str) -> bool:
        """Take a template away; machines that run from it go on. False when there was none."""
        return discard_template(self.root, key)

    def verify(self, template: StoredTemplate) -> list[str]:
        """Compare the files with their checksums: what is wrong, in words; empty when all is well."""
        manifest = _manifest(template.directory) or {"files": {}}
        problems = []
        for name, expected in manifest["files"].items():
            with (template.directory / name).open("rb") as file:
                if sparse_digest(file.fileno()) != expected["sha256"]:
                    problems.append(f"{template.directory / name} is not what was written")
        return problems

    def discard_image(self, digest: str) -> int:
        """Take away the templates that have the image mounted; how many bytes they occupied."""
        freed = 0
        for template in self.all():
            if template.description.image == digest:
                with suppress(FileNotFoundError):  # somebody else takes it away
                    occupied = template.disk_bytes
                    freed += occupied if self.discard(template.key) else 0
        return freed

    def remove_unfinished(self, key: str) -> None:
        """Remove what killed builders of that template left. Only for who holds its lock."""
        for left in self.root.glob(f"{PARTIAL_PREFIX}*-{key}"):
            remove_tree(left)

    def collect(self, *, keep: str) -> list[str]:
        """Remove what killed builders left, damaged and unused templates, and the oldest above MAX_BYTES."""
        remove_leftovers(self.root, older_than=time.time() - 3600)
        removed = [directory.name for directory in self._directories() if self.find(directory.name) is None]
        total = 0
        for template in self.all():
            total += template.disk_bytes
            unused = time.time() - template.used_at > UNUSED_FOR
            if template.key != keep and (unused or total > MAX_BYTES) and self.discard(template.key):
                removed.append(template.key)
        return removed

    # builds that failed

    def record_failure(self, key: str, reason: str) -> None:
        write_atomically(self._failure(key), reason.encode("utf-8", "replace")[:4096])

    def failure(self, key: str) -> str | None:
        """Why the last build failed, if that was within RETRY_AFTER seconds."""
        path = self._failure(key)
        try:
            if time.time() - path.stat().st_mtime < RETRY_AFTER:
                return path.read_text(errors="replace")
        except OSError:
            return None
        return None

    def _failure(self, key: str) -> Path:
        return self.root / f".failed-{key}"

    def _directories(self) -> Iterator[Path]:
        if self.root.is_dir():
            for entry in os.scandir(self.root):
                if _KEY.fullmatch(entry.name) and entry.is_dir():
                    yield Path(entry.path).absolute()


def discard_template(root: Path, key: str) -> bool:
    """As TemplateStore.discard(), for a process that knows no more than the directory."""
    doomed = partial_path(root / key)
    try:
        (root / key).rename(doomed)
    except FileNotFoundError:
        return False
    remove_tree(doomed)
    return True


def _stamp(stat: os.stat_result) -> dict[str, int]:
    """Changes when the file does."""
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, if it and the files are as they were written."""
    try:
        with (directory / _MANIFEST).open("rb") as file:
            signed = json.loads(file.read(_MAX_MANIFEST_BYTES))
        document: dict[str, Any] = signed["template"]
        body = json.dumps(document, sort_keys=True)
        if hashlib.sha256(body.encode()).hexdigest() != signed["sha256"]:
            return None
        for name, expected in document["files"].items():
            stamp = _stamp((directory / name).stat())
            if any(stamp[field] != expected[field] for field in stamp):
                return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return document


def _read(directory: Path) -> StoredTemplate | None:
    document = _manifest(directory)
    if document is None or document.get("key") != directory.name:
        return None
    try:
        description = Description(**document["description"])
        return StoredTemplate(
            directory.name, directory.absolute(), description, float(document["created_at"])
        )
    except (TypeError, ValueError, KeyError):
        return None
