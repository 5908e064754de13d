"""The keys that leave an interactive session, wherever the pieces of what is typed begin and end."""

import itertools

import pytest

from microsandbox.errors import InvalidConfigError
from microsandbox.sandbox.detach_keys import DEFAULT, DetachKeys


@pytest.mark.parametrize(
    ("spec", "typed"),
    [(DEFAULT, b"\x1d"), ("ctrl-a", b"\x01"), ("ctrl-A", b"\x01"), ("ctrl-[", b"\x1b"), ("ctrl-\\", b"\x1c"),
     ("ctrl-^", b"\x1e"), ("ctrl-_", b"\x1f"), ("ctrl-@", b"\0"), ("x", b"x"), ("~", b"~"),
     ("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-p,q,q", b"\x10qq")],
)  # fmt: skip
def test_keys_are_found(spec, typed):
    assert DetachKeys(spec).feed(b"12" + typed + b"34")[1]
    assert DetachKeys(spec).feed(b"12") == (b"12", False)


@pytest.mark.parametrize(
    "spec", ["", ",", "ctrl-", "ctrl-1", "ctrl-aa", "ctrl-?", "ctrl-`", "Ctrl-a", "ab", "é", "a,"]
)
def test_others_are_refused_by_name(spec):
    bad = next(part for part in spec.split(",") if len(part) != 1 or not part.isascii())
    with pytest.raises(InvalidConfigError) as refused:
        DetachKeys(spec)
    assert f"invalid detach key: {bad}" in str(refused.value)


def test_what_comes_before_goes_on_and_nothing_that_comes_after():
    assert DetachKeys("ctrl-]").feed(b"ls\n\x1drm\n") == (b"ls\n", True)


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(1, 7), 2)))
def test_a_sequence_is_found_across_pieces(cuts):
    typed = b"ab\x10\x10\x11cd"
    keys, sent, left = DetachKeys("ctrl-p,ctrl-q"), b"", False
    for piece in (typed[: cuts[0]], typed[cuts[0] : cuts[1]], typed[cuts[1] :]):
        if not left:
            forwarded, left = keys.feed(piece)
            sent += forwarded
    assert left
    assert sent in (b"ab\x10", b"ab\x10\x10"), "the first key of two has gone on if it came alone"
