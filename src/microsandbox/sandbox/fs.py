"""Files of a running sandbox, through its agent: small requests, and streams in both directions."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from microsandbox.agent.connection import Connection, Session
from microsandbox.agent.protocol import DATA_CHUNK, MessageType, binary, encode, integer, text
from microsandbox.arguments import octets, parameter
from microsandbox.arguments import text as plain_text
from microsandbox.errors import AgentClientError, FilesystemError, IoError, PathNotFoundError
from microsandbox.store.files import partial_path
from microsandbox.types import FsEntry, FsEntryKind, FsMetadata

_KINDS = {"file": FsEntryKind.FILE, "dir": FsEntryKind.DIRECTORY, "symlink": FsEntryKind.SYMLINK}
#: Directory entries asked for at a time, and how many a directory may have before the guest is not believed.
_BATCH, _MAX_ENTRIES = 512, 1 << 20


def _error(detail: str) -> FilesystemError:
    missing = detail.endswith("(os error 2)")
    return PathNotFoundError(detail) if missing else FilesystemError(detail)


async def _response(session: Session) -> Any:
    """The data of the session's final response. Raises FilesystemError."""
    while (message := await session.next_message()) is not None:
        if message.kind is MessageType.FS_RESPONSE:
            if message.payload.get("ok") is True:
                return message.payload.get("data")
            raise _error(text(message.payload, "error") or "the guest gave no reason")
        if message.kind is MessageType.ERROR:
            raise _error(text(message.payload, "message") or "the guest refused the request")
    raise FilesystemError("the request ended without a response")


def _field(data: Any, key: str) -> Any:
    if isinstance(data, Mapping) and key in data:
        return data[key]
    raise FilesystemError(f"the guest's response has no {key}")


def _info(value: Any) -> Mapping[str, Any]:
    """What the guest says of one entry. Raises FilesystemError for anything else."""
    if isinstance(value, Mapping):
        return value
    raise FilesystemError("the guest's response has something else in place of an entry")


def _handle(data: Any) -> int:
    handle = integer({"Handle": _field(data, "Handle")}, "Handle")
    if handle is None:
        raise FilesystemError("the guest's response has no handle")
    return handle


def _guest_path(value: object, name: str = "path") -> str:
    return parameter(name, plain_text, value)


class FsReadStream:
    """The content of a guest file, in pieces: an async iterator."""

    def __init__(self, session: Session, close: Callable[[], None]) -> None:
        self._session = session
        self._close = close
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Raises FilesystemError when reading fails."""
        while not self._ended:
            message = await self._session.next_message()
            if message is not None and message.kind is MessageType.FS_DATA:
                return binary(message.payload, "data")
            self._ended = True
            self._close()
            if message is None:
                raise FilesystemError("read: the stream ended without a response")
            if message.kind is not MessageType.FS_RESPONSE or message.payload.get("ok") is not True:
                detail = text(message.payload, "error") or text(message.payload, "message")
                raise _error(detail or "the guest gave no reason")
        raise StopAsyncIteration

    async def collect(self) -> bytes:
        """The rest of the file."""
        return b"".join([piece async for piece in self])

    def _abandon(self) -> None:
        """Give up a file that was not read to its end."""
        if not self._ended:
            self._ended = True
            self._session.close()
            self._close()


class FsWriteSink:
    """A guest file that is being written; ``close()`` confirms it. An async context manager."""

    def __init__(self, session: Session, close: Callable[[], None]) -> None:
        self._session = session
        self._close = close
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Append data, waiting while the guest is slow. Errors of the file surface from close()."""
        if self._closed:
            raise RuntimeError("write stream closed")
        content = memoryview(parameter("data", octets, data))
        for start in range(0, len(content), DATA_CHUNK):
            if self._session.ended:
                return
            await self._session.send_data(MessageType.FS_DATA, bytes(content[start : start + DATA_CHUNK]))

    async def close(self) -> None:
        """Finish the file; idempotent. Raises FilesystemError when any write has failed."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._session.ended:
                await self._session.send_data(MessageType.FS_DATA, b"")
            await _response(self._session)
        finally:
            self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the file; after an error in the block it is left as it is, without waiting for the guest."""
        if kind is None:
            await self.close()
        elif not self._closed:
            self._closed = True
            self._session.close()
            self._close()


class SandboxFsOps:
    """File operations as root in the guest. Paths should be absolute."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self, path: str) -> bytes:
        """The whole file."""
        return await (await self.read_stream(path)).collect()

    async def read_text(self, path: str) -> str:
        """The whole file as UTF-8. Raises FilesystemError when it is not."""
        content = await self.read(path)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise FilesystemError(f"invalid utf-8: {error}") from error

    async def read_stream(self, path: str) -> FsReadStream:
        """Open a file now and read it in pieces."""
        handle = await self._open(path, {"read": True})
        session = await self._session({"Read": {"handle": handle, "offset": 0}})
        return FsReadStream(session, lambda: self._close_handle(handle))

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a file's content; its directory must exist."""
        content = parameter("data", octets, data)
        async with await self.write_stream(path) as sink:
            await sink.write(content)

    async def write_stream(self, path: str) -> FsWriteSink:
        """Create or truncate a file now and write it in pieces."""
        handle = await self._open(path, {"write": True, "create": True, "truncate": True})
        session = await self._session({"Write": {"handle": handle, "offset": 0}})
        return FsWriteSink(session, lambda: self._close_handle(handle))

    async def list(self, path: str) -> list[FsEntry]:
        """The direct children, in no order; symbolic links are not followed."""
        handle = _handle(await self._request({"OpenDir": {"path": _guest_path(path)}}))
        entries: list[FsEntry] = []
        try:
            while batch := await self._read_dir(handle):
                entries += [_entry(path, info) for info in batch]
                if len(entries) > _MAX_ENTRIES:
                    raise FilesystemError(f"readdir: more than {_MAX_ENTRIES} entries")
        finally:
            self._close_handle(handle)
        return entries

    async def _read_dir(self, handle: int) -> Sequence[Any]:
        batch = _field(await self._request({"ReadDir": {"handle": handle, "limit": _BATCH}}), "List")
        if not isinstance(batch, Sequence):
            raise FilesystemError("the guest's response has no list of entries")
        return batch

    async def mkdir(self, path: str) -> None:
        """Make a directory and its parents; one that exists is fine."""
        await self._request({"Mkdir": {"path": _guest_path(path)}})

    async def remove(self, path: str) -> None:
        """Delete a file or a symbolic link."""
        await self._request({"Remove": {"path": _guest_path(path)}})

    async def remove_dir(self, path: str) -> None:
        """Delete a directory and all below it."""
        await self._request({"RemoveDir": {"path": _guest_path(path), "recursive": True}})

    async def copy(self, src: str, dst: str) -> None:
        """Copy one file with its mode."""
        await self._request({"Copy": {"src": _guest_path(src, "src"), "dst": _guest_path(dst, "dst")}})

    async def rename(self, src: str, dst: str) -> None:
        await self._request({"Rename": {"src": _guest_path(src, "src"), "dst": _guest_path(dst, "dst")}})

    async def stat(self, path: str) -> FsMetadata:
        """What a path is, following symbolic links."""
        operation = {"Stat": {"path": _guest_path(path), "follow_symlink": True}}
        info = _info(_field(await self._request(operation), "Stat"))
        mode = integer(info, "mode") or 0
        return FsMetadata(
            kind=_kind(info),
            size=integer(info, "size") or 0,
            mode=mode,
            readonly=not mode & stat.S_IWUSR,
            modified=_milliseconds(info),
            created=None,
        )

    async def exists(self, path: str) -> bool:
        """Whether the guest can stat the path."""
        try:
            await self._request({"Stat": {"path": _guest_path(path), "follow_symlink": True}})
        except FilesystemError:
            return False
        return True

    async def copy_from_host(self, host_path: str, guest_path: str) -> None:
        """Copy one regular file into the guest. Raises IoError for the host's side."""
        source = parameter("host_path", plain_text, host_path)
        try:
            file = await asyncio.to_thread(open, source, "rb", opener=_without_waiting)
        except OSError as error:
            raise _host_error(error) from error
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IoError(f"not a regular file: {host_path}")
            async with await self.write_stream(guest_path) as sink:
                while piece := await asyncio.to_thread(file.read, DATA_CHUNK):
                    await sink.write(piece)

    async def copy_to_host(self, guest_path: str, host_path: str) -> None:
        """Copy one file out of the guest; it appears under its name only when complete.

        Raises IoError for the host's side.
        """
        target = Path(os.path.realpath(parameter("host_path", plain_text, host_path)))
        if target.exists() and not target.is_file():
            raise IoError(f"not a regular file: {host_path}")
        partial = partial_path(target)
        stream = await self.read_stream(guest_path)
        try:
            with partial.open("xb") as file:
                async for piece in stream:
                    await asyncio.to_thread(file.write, piece)
            partial.replace(target)
        except OSError as error:
            raise _host_error(error) from error
        finally:
            partial.unlink(missing_ok=True)
            stream._abandon()

    async def _open(self, path: str, options: Mapping[str, object]) -> int:
        data = await self._request({"OpenFile": {"path": _guest_path(path), "options": options}})
        return _handle(data)

    def _close_handle(self, handle: int) -> None:
        """Nothing depends on the guest's word for it, and a guest that is silent must not be waited for."""
        with suppress(AgentClientError):
            session = self._connection.start_session()
            request = {"op": {"CloseHandle": {"handle": handle}}}
            self._connection.send_soon(encode(session.id, MessageType.FS_REQUEST, request))

    async def _session(self, operation: Mapping[str, object]) -> Session:
        return await self._connection.open_session(MessageType.FS_REQUEST, {"op": operation})

    async def _request(self, operation: Mapping[str, object]) -> Any:
        session = await self._session(operation)
        try:
            return await _response(session)
        finally:
            session.close()


def _entry(directory: str, value: Any) -> FsEntry:
    info = _info(value)
    name = text(info, "path") or ""
    return FsEntry(
        path=name if name.startswith("/") else f"{directory.rstrip('/')}/{name}",
        kind=_kind(info),
        size=integer(info, "size") or 0,
        mode=integer(info, "mode") or 0,
        modified=_milliseconds(info),
    )


def _kind(info: Mapping[str, Any]) -> FsEntryKind:
    return _KINDS.get(text(info, "kind") or "", FsEntryKind.OTHER)


def _milliseconds(info: Mapping[str, Any]) -> float | None:
    seconds = integer(info, "modified")
    return None if seconds is None else seconds * 1000.0


def _without_waiting(path: str, flags: int) -> int:
    """An opener for open(): a FIFO would wait for its writer otherwise."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _host_error(error: OSError) -> IoError:
    return IoError(f"{error.filename}: {error.strerror} (os error {error.errno})")
