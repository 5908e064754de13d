"""The merged tree of an image: layers applied bottom to top, in memory, names and metadata only.

Nothing is ever followed here: a path is a walk through dictionaries, so a symlink in the way is an entry
to be replaced, not a road to somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from microsandbox.image import tar_reader
from microsandbox.image.layer import LayerContent, normalize
from microsandbox.image.limits import quoted
from microsandbox.image.tar_reader import Member, TarError


class Inode(Struct, eq=False):
    """A file of any kind but directory. All names of a hard-linked file share one; ``fd`` has the data."""

    member: Member
    fd: int


class Directory(Struct, eq=False):
    """A directory; one that no layer describes is root's, mode 0755."""

    member: Member
    children: dict[bytes, Inode | Directory] = field(default_factory=dict)


def implied_directory() -> Directory:
    return Directory(Member(b"", tar_reader.DIRECTORY, 0o755, 0, 0, 0, 0, 0, 0, b"", 0, 0))


class Tree:
    """A file tree in the making."""

    def __init__(self) -> None:
        self.root = implied_directory()

    def apply(self, layer: LayerContent) -> None:
        """Put a layer on top. Raises TarError.

        What it removes goes first, so the order of its entries is of no matter: a whiteout means the
        layers below, never the same one.
        """
        for path in layer.opaques:
            directory = self._find(path)
            if isinstance(directory, Directory):
                directory.children.clear()
        for path in layer.whiteouts:
            parent, _, name = path.rpartition(b"/")
            directory = self._find(parent)
            if isinstance(directory, Directory):
                directory.children.pop(name, None)
        for member in layer.entries:
            self._add(member, layer.fd)

    def _find(self, path: bytes) -> Inode | Directory | None:
        node: Inode | Directory | None = self.root
        for name in path.split(b"/") if path else ():
            if not isinstance(node, Directory):
                return None
            node = node.children.get(name)
        return node

    def _add(self, member: Member, fd: int) -> None:
        if not member.path:
            self.root.member = member
            return
        if member.type == tar_reader.HARD_LINK:
            target = self._link_target(member)
        *parents, name = member.path.split(b"/")
        directory = self.root
        for part in parents:
            child = directory.children.get(part)
            if not isinstance(child, Directory):
                child = directory.children[part] = implied_directory()
            directory = child
        if member.type == tar_reader.DIRECTORY:
            existing = directory.children.get(name)
            if isinstance(existing, Directory):
                existing.member = member
            else:
                directory.children[name] = Directory(member)
        elif member.type == tar_reader.HARD_LINK:
            directory.children[name] = target
        else:
            directory.children[name] = Inode(member, fd)

    def _link_target(self, member: Member) -> Inode:
        try:
            found = self._find(normalize(member.link))
        except TarError as error:
            raise TarError(f"hard link {quoted(member.path)}: {error}") from error
        if found is None:
            raise TarError(f"hardlink target not found: {quoted(member.link)}")
        if isinstance(found, Directory) or found.member.type != tar_reader.REGULAR:
            raise TarError(
                f"hardlink target is not a regular file: {quoted(member.path)} -> {quoted(member.link)}"
            )
        return found

    def walk(self) -> Iterator[tuple[bytes, Inode | Directory]]:
        """Everything below the root, parents first, by name: the same tree gives the same order."""
        stack = [iter(_sorted(b"", self.root))]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                continue
            yield entry
            path, node = entry
            if isinstance(node, Directory):
                stack.append(iter(_sorted(path + b"/", node)))


def _sorted(prefix: bytes, directory: Directory) -> list[tuple[bytes, Inode | Directory]]:
    return [(prefix + name, node) for name, node in sorted(directory.children.items())]
