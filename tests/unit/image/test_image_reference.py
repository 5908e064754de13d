"""References are compared by meaning and shown as written."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from microsandbox.errors import ImageError
from microsandbox.image.reference import parse_reference

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.19", "docker.io/library/alpine:3.19"),
        ("me/tool", "docker.io/me/tool:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/library/alpine:latest", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("registry-1.docker.io/me/tool", "docker.io/me/tool:latest"),
        ("ghcr.io/org/a__b/c-d.e:V1.0_x", "ghcr.io/org/a__b/c-d.e:V1.0_x"),
        ("GHCR.IO/org/x", "ghcr.io/org/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x/y:t", "localhost:5000/x/y:t"),
        ("host:80/x", "host:80/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        (f"alpine@{D}", f"docker.io/library/alpine@{D}"),
        (f"alpine:3@{D}", f"docker.io/library/alpine@{D}"),
        ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128),
    ],
)
def test_a_reference_has_one_normal_form(text, normalized):
    reference = parse_reference(text)
    assert reference.normalized == normalized
    assert reference.text == text
    assert parse_reference(normalized).normalized == normalized


def test_the_digest_decides_over_the_tag():
    assert parse_reference(f"x:1@{D}").target == D
    assert parse_reference("x:1").target == "1"


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Alpine", "a b", "a:", "a:-t", "a:.t", "x:" + "t" * 129, "a@", "a@sha256:12", "@" + D,
        f"a@sha512:{'a' * 128}", f"a@{D.upper()}", "/a", "a/", "a//b", "a.b/", "a..b/c", "-a", "a_", "a.-b",
        "a___b", "host:port/x", "ho_st.x/y", "../x", "./x", "a/../b", "a:1:2", "a\n", "ä", "x" * 256,
        "http://host/x", "host:123456/x", "a:1/b:2:3",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_with_its_text(text):
    with pytest.raises(ImageError, match="^image error: invalid image reference: "):
        parse_reference(text)


COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-)[a-z0-9]+)*", fullmatch=True).filter(lambda s: len(s) < 40)
HOST = st.sampled_from(["", "docker.io/", "localhost/", "localhost:5000/", "reg.example.com/", "h:1/"])
TAG = st.from_regex(r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?", fullmatch=True)


@given(HOST, st.lists(COMPONENT, min_size=1, max_size=4), TAG, st.sampled_from(["", f"@{D}"]))
def test_whatever_the_grammar_makes_is_parsed_and_stays_the_same(host, path, tag, suffix):
    assume(host or len(path) == 1 or "." not in path[0])  # that would be a host
    first = parse_reference(f"{host}{'/'.join(path)}{tag}{suffix}")
    again = parse_reference(first.normalized)
    assert again.normalized == first.normalized
    assert (again.registry, again.repository, again.tag, again.digest) == (
        first.registry, first.repository, first.tag, first.digest,
    )  # fmt: skip
    assert first.repository.endswith(path[-1])


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_an_image_error(text):
    try:
        reference = parse_reference(text)
    except ImageError:
        return
    assert parse_reference(reference.normalized).normalized == reference.normalized
