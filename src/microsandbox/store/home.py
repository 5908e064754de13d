"""Where everything is: one value that every other module takes its paths from."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path

from msgspec import Struct

from microsandbox import environment
from microsandbox.errors import InvalidConfigError
from microsandbox.store.config import Config
from microsandbox.store.ownership import check_directory

#: Bytes a Unix socket path may have on Linux, its final NUL included (unix(7)).
SOCKET_PATH_LIMIT = 108
MAX_NAME_BYTES = 128


def validate_name(name: str) -> str:
    """The sandbox name, if it is one. Raises InvalidConfigError.

    Names become one component of host paths, so what cannot be one is refused here.
    """
    if not name:
        raise InvalidConfigError("sandbox name is required")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidConfigError(f"sandbox name is not valid UTF-8: {name!r}") from None
    if size > MAX_NAME_BYTES:
        raise InvalidConfigError(f"sandbox name is too long: {size} bytes (max {MAX_NAME_BYTES})")
    if name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidConfigError(f"sandbox name must be usable as a file name, without '/' or NUL: {name!r}")
    return name


def base_directory() -> Path:
    """``MSB_HOME``, else ``~/.microsandbox``, else ``.microsandbox``; absolute. Raises InvalidConfigError."""
    if configured := environment.value(environment.HOME):
        if configured.startswith("~"):
            raise InvalidConfigError(
                f"{environment.HOME} is {configured!r}, and ~ means something to shells only; "
                "write the path in full"
            )
        try:
            return Path(configured).absolute()
        except FileNotFoundError:
            raise InvalidConfigError(
                f"{environment.HOME} is {configured!r}, relative to a current directory that is gone"
            ) from None
    if users := environment.value("HOME"):
        return Path(users).absolute() / ".microsandbox"
    try:
        import pwd

        return Path(pwd.getpwuid(os.getuid()).pw_dir).absolute() / ".microsandbox"
    except KeyError:  # a container's user without a name
        return Path(".microsandbox").absolute()


def _configuration(path: Path) -> Config:
    try:
        path.lstat()
    except FileNotFoundError:
        return Config()
    except OSError:
        pass  # the reader finds the same, and says so
    from microsandbox.store.config_file import load_config  # which most homes do without

    return load_config(path)


class Home(Struct, frozen=True, dict=True):
    """The state directory and its parts. Directories are made by who needs them, mode 0700."""

    root: Path
    config: Config

    @classmethod
    def open(cls, base: Path | None = None) -> Home:
        """The home at ``base``, else at ``MSB_HOME``, by its config.json. Raises InvalidConfigError."""
        by_environment = base is None and environment.value(environment.HOME)
        base = base or base_directory()
        check_directory(base, environment.HOME if by_environment else "the home")
        config = _configuration(base / "config.json")
        for key, directory in (
            ("home", config.home),
            ("paths.cache", config.paths.cache),
            ("paths.sandboxes", config.paths.sandboxes),
        ):
            if directory is not None:
                check_directory(directory, f"{base / 'config.json'}: {key}")
        return cls(config.home or base, config)

    def _part(self, name: str, configured: Path | None = None) -> Path:
        return configured or self.root / name

    @cached_property
    def database(self) -> Path:
        return self._part("db") / "msb.db"

    @cached_property
    def cache(self) -> Path:
        return self._part("cache", self.config.paths.cache)

    @cached_property
    def sandboxes(self) -> Path:
        return self._part("sandboxes", self.config.paths.sandboxes)

    @cached_property
    def kernels(self) -> Path:
        return self._part("kernels")

    @cached_property
    def templates(self) -> Path:
        return self._part("templates")

    @cached_property
    def metrics_registry(self) -> Path:
        """``/dev/shm/msb-met-HASH-v2``, by the 64-bit FNV-1a hash of the home's path."""
        digest = 0xCBF29CE484222325
        for byte in os.fsencode(self.root.absolute()):
            digest = (digest ^ byte) * 0x100000001B3 % (1 << 64)
        return Path(f"/dev/shm/msb-met-{digest:016x}-v2")  # noqa: S108 - where POSIX shared memory is

    @cached_property
    def run(self) -> Path:
        return self._part("run")

    def sandbox(self, name: str) -> SandboxPaths:
        """The paths of one sandbox; ``name`` must have passed validate_name()."""
        return SandboxPaths(self.sandboxes / name, self.agent_socket(name))

    def agent_socket(self, name: str) -> Path:
        """The relay's socket: the first candidate that is short enough. Raises InvalidConfigError."""
        candidates = self.agent_socket_candidates(name)
        for path in candidates:
            if len(os.fsencode(path)) < SOCKET_PATH_LIMIT:
                return path
        shortest = min(len(os.fsencode(path)) for path in candidates)
        raise InvalidConfigError(
            f"agent relay socket path is too long: shortest derived path is {shortest} bytes, but Unix "
            f"socket paths on this platform must be shorter than {SOCKET_PATH_LIMIT} bytes; set MSB_HOME or "
            "paths.sandboxes to a shorter directory"
        )

    def agent_socket_candidates(self, name: str) -> tuple[Path, Path]:
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.run / "agent" / f"{digest}.sock", self.sandboxes / name / "runtime" / "agent.sock"


class SandboxPaths(Struct, frozen=True):
    """Files of one sandbox."""

    directory: Path
    agent_socket: Path

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def upper(self) -> Path:
        """The writable layer: a sparse ext4 image."""
        return self.directory / "upper.ext4"

    @property
    def boot_error(self) -> Path:
        return self.logs / "boot-error.json"
