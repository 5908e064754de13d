"""Layers on top of each other: the rules of whiteouts, links and types, against a model."""

import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microsandbox.image.layer import read_layer
from microsandbox.image.limits import Budget, LimitExceededError, Limits
from microsandbox.image.squashfs import pack
from microsandbox.image.tar_reader import TarError
from microsandbox.image.tasks import StopSignal
from microsandbox.image.tree import Directory, Tree
from tests.unit.image.image_building import (
    content,
    directory,
    entry,
    hard_link,
    listing,
    pax_entry,
    raw_header,
    symlink,
    tar,
    unpack,
)


@pytest.fixture
def spools():
    """A function that puts bytes into a file without a name."""
    opened = []

    def spool(data):
        fd = os.memfd_create("layer")
        os.write(fd, data)
        opened.append(fd)
        return fd

    yield spool
    for fd in opened:
        os.close(fd)


def read(data, fd=-1, **limits):
    return read_layer(iter([data]), False, fd, Budget(Limits(**limits)), lambda: None)


def merged(*layers):
    tree = Tree()
    for layer in layers:
        tree.apply(read(layer))
    return tree


def shape(tree):
    """``path: kind`` of everything, directories with a slash."""
    return {
        path.decode(): "dir" if isinstance(node, Directory) else chr(node.member.type)
        for path, node in tree.walk()
    }


def paths(*layers):
    return sorted(shape(merged(*layers)))


LOWER = tar(directory("d"), entry("d/a", b"1"), entry("d/b", b"2"), directory("e"), entry("e/x", b"3"))


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ([entry("d/.wh.a", b"")], ["d", "d/b", "e", "e/x"]),
        ([entry(".wh.d", b"")], ["e", "e/x"]),
        ([entry("d/.wh..wh..opq", b"")], ["d", "e", "e/x"]),
        ([entry(".wh..wh..opq", b""), entry("n", b"")], ["n"]),
        ([entry("d/a", b"new"), entry("d/.wh.a", b"")], ["d", "d/a", "d/b", "e", "e/x"]),
        ([entry("d/.wh.a", b""), entry("d/a", b"new")], ["d", "d/a", "d/b", "e", "e/x"]),
        ([entry("d/n", b""), entry("d/.wh..wh..opq", b"")], ["d", "d/n", "e", "e/x"]),
        ([entry(".wh.d", b""), entry("d/n", b"")], ["d", "d/n", "e", "e/x"]),
        ([entry("d", b"file")], ["d", "e", "e/x"]),
        ([symlink("d", "e")], ["d", "e", "e/x"]),
        ([symlink("d", "e"), entry("d/n", b"")], ["d", "d/n", "e", "e/x"]),
        ([symlink("s", "/e"), entry("s/.wh.x", b"")], ["d", "d/a", "d/b", "e", "e/x", "s"]),
        ([entry("d/a/n", b"")], ["d", "d/a", "d/a/n", "d/b", "e", "e/x"]),
        ([directory("d", mode=0o700)], ["d", "d/a", "d/b", "e", "e/x"]),
        ([entry(".wh.missing", b""), entry("no/.wh.x", b"")], ["d", "d/a", "d/b", "e", "e/x"]),
        ([entry("d/.wh..wh.plnk", b"")], ["d", "d/a", "d/b", "e", "e/x"]),
        ([entry("././/d/./n", b"")], ["d", "d/a", "d/b", "d/n", "e", "e/x"]),
        ([entry("/d/n", b"")], ["d", "d/a", "d/b", "d/n", "e", "e/x"]),
    ],
)
def test_a_layer_on_top(upper, expected):
    assert paths(LOWER, tar(*upper)) == expected


def test_directories_take_the_later_metadata_and_keep_their_content():
    tree = merged(LOWER, tar(directory("d", mode=0o700, uid=7), directory("./", mode=0o711, uid=9)))
    node = dict(tree.walk())[b"d"]
    assert (node.member.mode, node.member.uid, sorted(node.children)) == (0o700, 7, [b"a", b"b"])
    assert (tree.root.member.mode, tree.root.member.uid) == (0o711, 9)


def test_missing_parents_are_roots_with_mode_755():
    node = dict(merged(tar(entry("x/y/z", b""))).walk())[b"x/y"]
    assert (node.member.mode, node.member.uid, node.member.gid) == (0o755, 0, 0)


def test_all_names_of_a_hard_link_are_one_inode_also_across_layers():
    tree = merged(LOWER, tar(hard_link("h", "./d/a"), hard_link("h2", "/h"), entry("d/.wh.b", b"")))
    found = dict(tree.walk())
    assert found[b"h"] is found[b"d/a"] is found[b"h2"]
    # A name that is replaced leaves the other names alone.
    tree.apply(read(tar(entry("d/a", b"new"))))
    found = dict(tree.walk())
    assert found[b"h"] is found[b"h2"] is not found[b"d/a"]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([hard_link("h", "nothing")], 'hardlink target not found: "nothing"'),
        ([hard_link("h", "later"), entry("later", b"")], "hardlink target not found"),
        ([entry("d/.wh.a", b""), hard_link("h", "d/a")], "hardlink target not found"),
        ([hard_link("h", "d")], "not a regular file"),
        ([symlink("s", "d/a"), hard_link("h", "s")], "not a regular file"),
        ([symlink("s", "d"), hard_link("h", "s/a")], "hardlink target not found"),
        ([hard_link("h", "../etc/passwd")], "path traversal in tar"),
        ([entry("../x", b"")], 'path traversal in tar: "../x"'),
        ([entry("a/../../x", b"")], "path traversal in tar"),
        ([entry("/..", b"")], "path traversal in tar"),
        ([entry("d/.wh...", b"")], "path traversal in tar"),
        ([entry("d/.wh.", b"")], "path traversal in tar"),
        ([entry("a/" * 129 + "f", b"")], "path too deep"),
        ([entry("n" * 256, b"")], "path too long"),
        ([entry("/".join(["n" * 200] * 21), b"")], "path too long"),
        ([symlink("s", "t" * 4097)], "path too long"),
        ([symlink("s", "")], "symlink without a target"),
        ([symlink("./", "x")], "replaces the root"),
        ([entry("f", b"", uid=2**32 - 1)], "impossible owner"),
        ([entry("f", b"", gid=2**40)], "impossible owner"),
        ([entry("c", kind=tarfile.CHRTYPE, devmajor=5000)], "impossible device number"),
        ([entry("f", b"", xattrs={"user.x": b"v" * 70000})], "extended attribute that is too large"),
    ],
)
def test_what_a_layer_may_not_do(entries, reason):
    with pytest.raises(TarError, match=reason):
        merged(LOWER, tar(*entries))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"entries": 5}, "entry count exceeded"),
        ({"file_bytes": 99}, 'file too large: "f0"'),
        ({"total_bytes": 500}, "total extracted size exceeded"),
        ({"metadata_bytes": 300}, "entry metadata exceeds"),
    ],
)
def test_limits_are_over_all_entries(limits, reason):
    data = tar(*(entry(f"f{n}", b"x" * 100) for n in range(6)))
    read(data, entries=6, file_bytes=100, total_bytes=600)
    with pytest.raises(LimitExceededError, match=reason):
        read(data, **limits)


def test_limits_are_over_all_layers():
    budget = Budget(Limits(entries=3))
    data = tar(entry("a", b""), entry("b", b""))
    read_layer(iter([data]), False, -1, budget, lambda: None)
    with pytest.raises(LimitExceededError, match="entry count exceeded"):
        read_layer(iter([data]), False, -1, budget, lambda: None)


def test_padding_without_end_stops_at_the_limit():
    endless = iter([tar(entry("a", b"")), *(bytes(1 << 20) for _ in range(200))])
    with pytest.raises(ValueError, match="total extracted size exceeded"):
        read_layer(
            endless,
            False,
            -1,
            Budget(Limits(entries=10, total_bytes=1000, metadata_bytes=1000)),
            lambda: None,
        )


@pytest.mark.parametrize("rest", [b"x", bytes(5000) + b"x"])
def test_trailing_garbage_is_an_error(rest):
    with pytest.raises(TarError, match="trailing garbage"):
        read(tar(entry("a", b"")) + rest)


def test_attributes_of_overlayfs_and_those_squashfs_cannot_hold_are_dropped():
    xattrs = {
        "trusted.overlay.opaque": b"y",
        "user.overlay.redirect": b"/etc",
        "system.posix_acl_access": b"acl",
        "user.kept": b"1",
    }
    [found] = read(tar(entry("f", b"", xattrs=xattrs))).entries
    assert found.xattrs == {b"user.kept": b"1"}


# The model: a flat table of paths, changed one entry at a time.

NAMES = st.sampled_from(["a", "b", "c"])
PATH = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
OPERATION = st.one_of(
    st.tuples(st.just("file"), PATH),
    st.tuples(st.just("dir"), PATH),
    st.tuples(st.just("link"), PATH),
    st.tuples(st.just("whiteout"), PATH),
    st.tuples(st.just("opaque"), st.one_of(st.just(""), PATH)),
)


class Model:
    def __init__(self):
        self.nodes = {}

    def is_dir(self, path):
        return self.nodes.get(path, ("",))[0] == "dir"

    def below(self, path):
        return [other for other in self.nodes if other.startswith(f"{path}/") or not path]

    def remove_below(self, path):
        for other in self.below(path):
            del self.nodes[other]

    def reachable(self, path):
        parts = path.split("/")[:-1]
        return all(self.is_dir("/".join(parts[: n + 1])) for n in range(len(parts)))

    def layer(self, operations, number):
        for kind, path in operations:
            if kind == "whiteout" and self.reachable(path):
                self.remove_below(path)
                self.nodes.pop(path, None)
            elif kind == "opaque" and (not path or (self.is_dir(path) and self.reachable(path))):
                self.remove_below(path)
        for index, (kind, path) in enumerate(operations):
            if kind in ("file", "dir", "link"):
                self.put(path, (kind, (number, index)))

    def put(self, path, node):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if not self.is_dir(parent):
                self.remove_below(parent)
                self.nodes[parent] = ("dir", None)
        if not (node[0] == "dir" and self.is_dir(path)):
            self.remove_below(path)
        self.nodes[path] = node


def layer_of(operations, number):
    entries = []
    for index, (kind, path) in enumerate(operations):
        parent, _, name = path.rpartition("/")
        prefix = f"{parent}/" if parent else ""
        fields = {"uid": number + 1, "gid": index + 1}
        if kind == "file":
            entries.append(entry(path, b"", **fields))
        elif kind == "dir":
            entries.append(directory(path, **fields))
        elif kind == "link":
            entries.append(entry(path, kind=tarfile.SYMTYPE, link="a/b", **fields))
        elif kind == "whiteout":
            entries.append(entry(f"{prefix}.wh.{name}", b""))
        else:
            entries.append(entry(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq", b""))
    return tar(*entries, format=tarfile.USTAR_FORMAT)


@given(st.lists(st.lists(OPERATION, max_size=6), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_merging_agrees_with_the_model(layers):
    model, tree = Model(), Tree()
    for number, operations in enumerate(layers):
        model.layer(operations, number)
        tree.apply(read(layer_of(operations, number)))
    found = {}
    for path, node in tree.walk():
        kind = {"0": "file", "2": "link", "5": "dir"}[chr(node.member.type)]
        made = (node.member.uid - 1, node.member.gid - 1)
        found[path.decode()] = (kind, None if made == (-1, -1) else made)
    assert found == model.nodes


# What the kernel will see


def test_everything_arrives_in_the_block_image(spools, tmp_path):
    capability = b"\1\0\0\2\0\x20\0\0" + bytes(12)
    data = tar(
        directory("./", mode=0o711, uid=5, gid=6, mtime=1_000_000_000),
        directory("tmp", mode=0o1777, uid=4_000_000_000, mtime=4_294_967_295),
        entry("tmp/ping", b"elf", mode=0o4755, mtime=1_700_000_000.75, gid=12),
        hard_link("tmp/same", "tmp/ping"),
        entry("tmp/sgid", b"", mode=0o2711, mtime=-5),
        pax_entry("capable", b"x", {b"security.capability": capability, b"user.note": b"a=b\nc"}),
        symlink("abs", "/tmp/../ping"),
        entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("disk", kind=tarfile.BLKTYPE, devmajor=8, devminor=17, mode=0o660),
        entry("pipe", kind=tarfile.FIFOTYPE),
        entry("new\nline", b"n"),
        entry("\udcff\udcfe", b"bytes"),
        entry("d/" + "deep/" * 40 + "f" * 200, b"long"),
        symlink("far", "t" * 3000),
        entry("big", bytes(range(256)) * 4000),
        directory("empty"),
    )
    content_, tree = read(data, spools(data)), Tree()
    tree.apply(content_)
    size = pack(tree, tmp_path / "image", StopSignal())
    assert size == (tmp_path / "image").stat().st_size
    assert content(tmp_path / "image", "big") == bytes(range(256)) * 4000
    found = listing(tmp_path / "image")
    assert found[""][:2] == ("drwx--x--x", "5/6") and "2001-09-09 01:46" in found[""][2]
    assert found["tmp"][:2] == ("drwxrwxrwt", "4000000000/0") and "2106-02-07 06:28" in found["tmp"][2]
    assert found["tmp/ping"] == ("-rwsr-xr-x", "0/12", "3 2023-11-14 22:13")
    assert found["tmp/sgid"] == ("-rwx--s--x", "0/0", "0 1970-01-01 00:00")
    assert found["abs"][2].endswith("-> /tmp/../ping")
    assert found["null"][0] == "crw-rw-rw-" and "1, 3" in found["null"][2]
    assert found["disk"][0] == "brw-rw----" and "8, 17" in found["disk"][2]
    assert found["pipe"][0].startswith("p") and "\udcff\udcfe" in found
    assert "d/" + "deep/" * 40 + "f" * 200 in found
    if os.geteuid() == 0:
        root = unpack(tmp_path / "image", tmp_path / "out")
        assert os.getxattr(root / "capable", "security.capability") == capability
        assert os.getxattr(root / "capable", "user.note") == b"a=b\nc"
        assert (root / "tmp/ping").stat().st_ino == (root / "tmp/same").stat().st_ino
        assert (root / "tmp/ping").stat().st_nlink == 2
        assert (root / "new\nline").read_bytes() == b"n"
        assert os.readlink(root / "far") == "t" * 3000


def test_the_root_is_roots_without_a_word_about_it_and_packing_is_repeatable(spools, tmp_path, monkeypatch):
    """squashfs-tools would take owner and time of who packs; ids that no file has are added."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234")
    data = tar(
        *(entry(f"f{n}", b"x" * n, uid=1000 + n, gid=77, xattrs={"user.n": b"%d" % n}) for n in range(3000))
    )
    for name in ("one", "two"):
        tree = Tree()
        tree.apply(read(data, spools(data)))
        tree.root.member.uid, tree.root.member.gid = 123456, 654321
        pack(tree, tmp_path / name, StopSignal())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = listing(tmp_path / "one")
    assert found[""][:2] == ("drwxr-xr-x", "123456/654321") and "1970-01-01" in found[""][2]
    assert all(found[f"f{n}"][1] == f"{1000 + n}/77" for n in range(3000))
    assert content(tmp_path / "one", "f2999") == b"x" * 2999
    if os.geteuid() == 0:
        root = unpack(tmp_path / "one", tmp_path / "out")
        assert all(os.getxattr(root / f"f{n}", "user.n") == b"%d" % n for n in range(0, 3000, 37))


def test_sparse_files_arrive_with_their_holes_as_zeros(spools, tmp_path):
    map_ = b"2\n4096\n6\n65536\n3\n"
    body = map_ + bytes(512 - len(map_)) + b"sixsixtri"
    data = (
        pax_header({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"100000"})
        + raw_header(b"s", size=len(body))
        + body
        + bytes(-len(body) % 512)
    )
    tree = Tree()
    tree.apply(read(data, spools(data)))
    pack(tree, tmp_path / "image", StopSignal())
    expected = bytearray(100000)
    expected[4096:4102], expected[65536:65539] = b"sixsix", b"tri"
    assert content(tmp_path / "image", "s") == bytes(expected)


def pax_header(records):
    body = b""
    for key, value in records.items():
        text = b" " + key + b"=" + value + b"\n"
        length = next(n for n in range(len(text), len(text) + 12) if n == len(text) + len(str(n)))
        body += str(length).encode() + text
    return raw_header(b"pax", kind=b"x", size=len(body)) + body + bytes(-len(body) % 512)
