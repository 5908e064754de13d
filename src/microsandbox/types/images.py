"""Where a sandbox's root file system comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    username: str
    password: str = field(repr=False)

    @classmethod
    def basic(cls, username: str, password: str) -> RegistryAuth:
        return cls(username, password)

    def _to_dict(self) -> dict[str, str]:
        return {"username": self.username, "password": self.password}


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Made by ``Image.oci``, ``Image.bind`` and ``Image.disk``."""

    _type: str
    _path: str | None = None
    _reference: str | None = None
    _upper_size_mib: int | None = None
    _fstype: str | None = None
    _format: str | None = None

    def _to_image_str(self) -> str:
        text = {"oci": self._reference, "bind": self._path, "disk": self._path}.get(self._type)
        if text is None:
            raise ValueError(f"invalid ImageSource: type={self._type}")
        return text


class Image:
    """The factories alone; ``microsandbox.Image`` also looks after the images that were pulled."""

    @staticmethod
    def oci(reference: str, *, upper_size_mib: int | None = None) -> ImageSource:
        """An image of a registry. ``upper_size_mib`` is the size of the sandbox's writable layer."""
        return ImageSource("oci", _reference=reference, _upper_size_mib=upper_size_mib)

    @staticmethod
    def bind(path: str | os.PathLike[str]) -> ImageSource:
        """A directory of the host."""
        return ImageSource("bind", _path=os.fspath(path))

    @staticmethod
    def disk(path: str | os.PathLike[str], *, fstype: str | None = None) -> ImageSource:
        """A disk image of the host."""
        return ImageSource("disk", _path=os.fspath(path), _fstype=fstype)
