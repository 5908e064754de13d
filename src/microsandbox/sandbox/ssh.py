"""SSH into a sandbox: named here, spoken by a later release."""

from __future__ import annotations

import os

from microsandbox.errors import NotSupportedYetError
from microsandbox.unavailable import Unavailable

_PathLike = str | os.PathLike[str]


def _later() -> NotSupportedYetError:
    return NotSupportedYetError("ssh")


class SandboxSshOps(Unavailable):
    """What ``Sandbox.ssh()`` returns."""

    async def open_client(
        self, *, user: str = "root", term: str | None = None, sftp: bool = True
    ) -> SshClient:
        raise _later()

    async def prepare_server(
        self,
        *,
        host_key_path: _PathLike | None = None,
        authorized_keys_path: _PathLike | None = None,
        user: str | None = None,
        sftp: bool = True,
    ) -> SshServer:
        raise _later()


class SshClient(Unavailable):
    """A client of one sandbox's SSH server."""

    async def exec(self, command: str, *, tty: bool = False) -> SshOutput:
        raise _later()

    async def attach(self, *, term: str | None = None, detach_keys: str | None = None) -> int:
        raise _later()

    async def sftp(self) -> SftpClient:
        raise _later()

    async def close(self) -> None:
        raise _later()


class SshOutput(Unavailable):
    """A command that was run over SSH."""

    status: int
    success: bool
    stdout_text: str
    stderr_text: str
    stdout_bytes: bytes
    stderr_bytes: bytes


class SftpClient(Unavailable):
    """The guest's files over SFTP."""

    async def read(self, path: str) -> bytes:
        raise _later()

    async def write(self, path: str, data: bytes) -> None:
        raise _later()

    async def mkdir(self, path: str) -> None:
        raise _later()

    async def remove_file(self, path: str) -> None:
        raise _later()

    async def remove_dir(self, path: str) -> None:
        raise _later()

    async def rename(self, old: str, new: str) -> None:
        raise _later()

    async def real_path(self, path: str) -> str:
        raise _later()

    async def read_link(self, path: str) -> str:
        raise _later()

    async def symlink(self, target: str, link_path: str) -> None:
        raise _later()

    async def close(self) -> None:
        raise _later()


class SshServer(Unavailable):
    """One SSH session on this process's standard input and output."""

    async def serve_connection(self) -> None:
        raise _later()

    def close(self) -> None:
        raise _later()
