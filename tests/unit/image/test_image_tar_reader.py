"""Tar headers: all that images have is understood, all that is damaged is refused."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microsandbox.image import tar_reader
from microsandbox.image.streams import SpoolStream
from microsandbox.image.tar_reader import TarError, read_members
from tests.unit.image.image_building import END, directory, entry, hard_link, padded, raw_header, symlink, tar


def members(data, size=700):
    chunks = iter([data[start : start + size] for start in range(0, len(data), size)])
    return list(read_members(SpoolStream(chunks, None, limit=1 << 30, what="too large")))


NAME = st.text(
    st.characters(blacklist_characters="\0/", blacklist_categories=("Cs",)), min_size=1, max_size=150
)


@given(
    st.lists(
        st.tuples(
            NAME,
            st.binary(max_size=2000),
            st.integers(0, 2**32 - 2),
            st.integers(0, 2**32 - 1),
            st.integers(0, 0o7777),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@settings(max_examples=80, deadline=None)
def test_what_tarfile_writes_is_read_back(files, format):
    data = tar(
        *(entry(name, body, uid=uid, mtime=mtime, mode=mode) for name, body, uid, mtime, mode in files),
        format=format,
    )
    found = members(data)
    assert [(m.path, m.uid, m.mtime, m.mode) for m in found] == [
        (name.encode(), uid, mtime, mode) for name, _, uid, mtime, mode in files
    ]
    for member, (_, body, *_) in zip(found, files, strict=True):
        assert data[member.data_offset : member.data_offset + member.size] == body


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_entry(format):
    found = members(
        tar(
            directory("d"),
            entry("d/f", b"x"),
            hard_link("d/h", "d/f"),
            symlink("d/s", "../anywhere"),
            entry("c", kind=tarfile.CHRTYPE, devmajor=1, devminor=300),
            entry("b", kind=tarfile.BLKTYPE, devmajor=259, devminor=70000),
            entry("p", kind=tarfile.FIFOTYPE),
            entry("t", b"y", kind=tarfile.CONTTYPE),
            entry("old", b"z", kind=tarfile.AREGTYPE),
            format=format,
        )
    )
    assert [chr(member.type) for member in found] == list("501234600")
    assert found[2].link == b"d/f" and found[3].link == b"../anywhere"
    assert (found[4].major, found[4].minor, found[5].major, found[5].minor) == (1, 300, 259, 70000)


def test_long_names_and_bytes_that_are_not_utf8():
    name, target = "d/" + "n\udcff" * 700, "t\udcfe" * 1000
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        [found] = members(tar(symlink(name, target), format=format))
        assert found.path == name.encode("utf-8", "surrogateescape")
        assert found.link == target.encode("utf-8", "surrogateescape")


def test_a_ustar_prefix_belongs_to_the_name():
    [found] = members(raw_header(b"name", prefix=b"some/where"))
    assert found.path == b"some/where/name"


def test_base_256_numbers():
    uid = b"\x80" + (3_000_000_000).to_bytes(7, "big")
    size = b"\x80" + (5).to_bytes(11, "big")
    [found] = members(raw_header(b"f", uid=uid, size=size) + padded(b"12345"))
    assert (found.uid, found.size) == (3_000_000_000, 5)
    [found] = members(raw_header(b"f", mtime=b"\xff" * 11 + b"\xfe"))
    assert found.mtime == -2


def pax(records, kind=b"x"):
    body = b""
    for key, value in records:
        text = b" " + key + b"=" + value + b"\n"
        length = next(n for n in range(len(text), len(text) + 12) if n == len(text) + len(str(n)))
        body += str(length).encode() + text
    return raw_header(b"pax", kind=kind, size=len(body)) + padded(body)


def test_extended_headers_win_over_the_header_and_global_ones_last():
    data = (
        pax([(b"uid", b"7"), (b"gid", b"8")], b"g")
        + pax([(b"path", b"long"), (b"gid", b"9"), (b"mtime", b"12.75"), (b"size", b"3")])
        + raw_header(b"short", size=0)
        + padded(b"abc")
        + raw_header(b"next")
        + pax([(b"uid", b"")])
        + raw_header(b"reset", mtime=b"00000000005\0")
        + pax([(b"mtime", b"-1.5")])
        + raw_header(b"early")
    )
    first, second, third, fourth = members(data + END)
    assert (first.path, first.uid, first.gid, first.mtime, first.size) == (b"long", 7, 9, 12, 3)
    assert (second.path, second.uid, second.gid) == (b"next", 7, 8)
    assert (third.uid, third.gid, third.mtime) == (0, 8, 5)
    assert fourth.mtime == -2


def test_extended_attributes_in_both_spellings():
    records = [
        (b"SCHILY.xattr.security.capability", b"\1\0\0\2\n=\0"),
        (b"SCHILY.xattr.user.empty", b""),
        (b"LIBARCHIVE.xattr.user.a%20b", b"aGVsbG8"),
    ]
    [found] = members(pax(records) + raw_header(b"f"))
    assert found.xattrs == {
        b"security.capability": b"\1\0\0\2\n=\0",
        b"user.empty": b"",
        b"user.a b": b"hello",
    }


@pytest.mark.parametrize("format", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_of_every_format(format, tmp_path):
    """GNU tar itself writes them."""
    import subprocess

    segments = [(0, b"a" * 4096), (1 << 20, b"b" * 8192), (3 << 20, b"c" * 100)]
    segments += [((4 << 20) + (n << 16), b"%04d" % n * 1024) for n in range(30)]
    with (tmp_path / "sparse").open("wb") as file:
        for offset, data in segments:
            file.seek(offset)
            file.write(data)
        file.truncate(9 << 20)
    option = ["--format=gnu"] if format == "gnu" else ["--format=pax", f"--sparse-version={format}"]
    packed = subprocess.run(
        ["tar", "-C", tmp_path, "-cf", "-", "-S", *option, "sparse"], capture_output=True, check=True
    ).stdout
    assert len(packed) < 1 << 19
    [found] = members(packed)
    assert (found.path, found.type, found.size) == (b"sparse", tar_reader.REGULAR, 9 << 20)
    rebuilt, source = bytearray(found.size), found.data_offset
    for offset, length in found.sparse:
        rebuilt[offset : offset + length] = packed[source : source + length]
        source += length
    assert bytes(rebuilt) == (tmp_path / "sparse").read_bytes()


GNU = b"ustar  \0"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw_header(b"f")[:300], "truncated inside a header"),
        (raw_header(b"f", size=1000) + bytes(600), 'truncated inside "f"'),
        (raw_header(b"f").replace(b"f", b"g", 1), "bad checksum"),
        (b"garbage" * 100, "bad checksum"),
        (raw_header(b"f", size=b"00000000009\0"), "bad size"),
        (raw_header(b"f", size=b"0000000-007\0"), "bad size"),
        (raw_header(b"f", size=b"\xff" * 12), "negative size"),
        (raw_header(b"f", kind=b"%"), 'unknown type "%"'),
        (raw_header(b"f", kind=b"M", size=0), "unknown type"),
        (raw_header(b"f", kind=b"9"), "unknown type"),
        (raw_header(b"x", kind=b"L", size=2 << 20), "extended tar header of 2097152 bytes"),
        (raw_header(b"x", kind=b"x", size=(1 << 33) - 1), "extended tar header of"),
        (raw_header(b"x", kind=b"L", size=600) + bytes(512), "truncated inside an extended header"),
        (pax([(b"path", b"p")]), "truncated after an extended header"),
        (pax([(b"path", b"a\0b")]) + raw_header(b"f"), "NUL"),
        (pax([(b"size", b"-1")]) + raw_header(b"f"), "negative size"),
        (pax([(b"size", b"1e3")]) + raw_header(b"f"), "bad size"),
        (pax([(b"uid", b"9" * 40)]) + raw_header(b"f"), "bad uid"),
        (pax([(b"LIBARCHIVE.xattr.user.x", b"!!!!")]) + raw_header(b"f"), "not base64"),
        (raw_header(b"x", kind=b"x", size=9) + padded(b"99 a=b\nxx"), "bad extended tar header"),
        (raw_header(b"x", kind=b"x", size=7) + padded(b"6 a=bb\n"), "bad extended tar header"),
        (raw_header(b"x", kind=b"x", size=5) + padded(b"5 ab\n"), "bad extended tar header"),
        (raw_header(b"x", kind=b"x", size=13) + padded(b"13:path=abcd\n"), "bad extended tar header"),
        (raw_header(b"f") + bytes(512) + raw_header(b"g"), "trailing garbage"),
        (pax([(b"GNU.sparse.map", b"5,1,3,4"), (b"GNU.sparse.size", b"9")]) + raw_header(b"f"), "of order"),
        (pax([(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"9")]) + raw_header(b"f"), "does not match"),
        (pax([(b"GNU.sparse.map", b"0"), (b"GNU.sparse.size", b"9")]) + raw_header(b"f"), "1 numbers"),
        (pax([(b"GNU.sparse.map", b"0,x"), (b"GNU.sparse.size", b"9")]) + raw_header(b"f"), "bad number"),
        (
            pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")])
            + raw_header(b"f", size=512)
            + padded(b"9999999\n"),
            "more than",
        ),
        (raw_header(b"f", kind=b"S", magic=GNU, size=5) + padded(b"12345"), "does not match"),
    ],
)  # fmt: skip
def test_damage_is_an_error_that_says_where(data, reason):
    with pytest.raises(TarError, match=reason.replace("(", r"\(")):
        members(data)


def test_an_end_without_its_mark_is_an_end():
    assert len(members(tar(entry("f", b"x"))[:1024])) == 1
    assert members(b"") == []


def test_metadata_of_no_interest_is_skipped():
    data = raw_header(b"label", kind=b"V", size=0) + raw_header(b"v", kind=b"A", size=700) + bytes(1024)
    assert [m.path for m in members(data + raw_header(b"f"))] == [b"f"]


VALID = tar(
    directory("d"),
    entry("d/" + "f" * 120, b"x" * 700, xattrs={"user.x": b"v"}),
    symlink("l", "d"),
    format=tarfile.PAX_FORMAT,
)


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255), st.integers(1, 600))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_makes_another_tar_or_an_error(position, value, size):
    changed = bytearray(VALID)
    changed[position] = value
    try:
        found = members(bytes(changed), size)
    except TarError:
        return
    assert all(0 <= m.size <= len(VALID) or m.type != tar_reader.REGULAR for m in found)


@given(st.binary(max_size=3000))
@settings(max_examples=100, deadline=None)
def test_garbage_is_refused_or_empty(data):
    try:
        found = members(data)
    except TarError:
        return
    assert found == [] or len(data) >= 512
    assert io.BytesIO(data).read(512).strip(b"\0") == b""
