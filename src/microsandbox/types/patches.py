"""Changes to a root file system before its first boot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PatchConfig:
    """One change; make it with the factories of ``Patch``."""

    kind: str
    path: str | None = None
    content: str | None = None
    src: str | None = None
    dst: str | None = None
    target: str | None = None
    link: str | None = None
    mode: int | None = None
    replace: bool = False

    def _to_dict(self) -> dict[str, Any]:
        names = ("kind", "path", "content", "src", "dst", "target", "link", "mode")
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.replace:
            values["replace"] = True
        return values


class Patch:
    """Factories of patches. Modes are permission bits; ``replace`` allows a path that exists."""

    @staticmethod
    def text(path: str, content: str, *, mode: int | None = None, replace: bool = False) -> PatchConfig:
        return PatchConfig("text", path=path, content=content, mode=mode, replace=replace)

    @staticmethod
    def mkdir(path: str, *, mode: int | None = None) -> PatchConfig:
        return PatchConfig("mkdir", path=path, mode=mode)

    @staticmethod
    def append(path: str, content: str) -> PatchConfig:
        return PatchConfig("append", path=path, content=content)

    @staticmethod
    def copy_file(src: str, dst: str, *, mode: int | None = None, replace: bool = False) -> PatchConfig:
        """Copy a file of the host into the guest."""
        return PatchConfig("copy_file", src=src, dst=dst, mode=mode, replace=replace)

    @staticmethod
    def copy_dir(src: str, dst: str, *, replace: bool = False) -> PatchConfig:
        """Copy a directory of the host into the guest."""
        return PatchConfig("copy_dir", src=src, dst=dst, replace=replace)

    @staticmethod
    def symlink(target: str, link: str, *, replace: bool = False) -> PatchConfig:
        return PatchConfig("symlink", target=target, link=link, replace=replace)

    @staticmethod
    def remove(path: str) -> PatchConfig:
        return PatchConfig("remove", path=path)
