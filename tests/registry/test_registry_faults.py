"""Registries that fail, lie or redirect: retried, refused or followed, and nothing wrong is kept."""

import asyncio
import email.utils
import json
import random
import subprocess
import time

import pytest

from microsandbox.errors import ImageError, ImagePullFailedError
from microsandbox.image.registry import is_loopback
from tests.registry.scripted_registry import ScriptedRegistry, reply
from tests.unit.image.image_building import Built, compress, content, digest, entry, files_of, rows_of, tar

IMAGE = Built([tar(entry("f", random.Random(1).randbytes(2_000_000)))], name="x:1")
LAYER = IMAGE.manifest["layers"][0]["digest"]
BODY = IMAGE.packed[0]
MANIFEST_TYPE = IMAGE.manifest["mediaType"]


async def check(store, reference, **options):
    stored = await store.pull(reference, **options)
    assert len(content(stored.rootfs, "f")) == 2_000_000
    return stored


@pytest.mark.parametrize("target", ["manifests/1", IMAGE.manifest["config"]["digest"], LAYER])
@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_failures_that_pass_are_retried(target, status, registry, store):
    reference = registry.serve(IMAGE)
    registry.behave(target, lambda handler: reply(handler, status, b"later"), times=3)
    await check(store, reference)
    assert registry.fetched(target) == 4


async def test_a_failure_that_stays_names_registry_repository_and_status(registry, store, home):
    reference = registry.serve(IMAGE)
    registry.behave(LAYER, lambda handler: reply(handler, 503, b""), times=99)
    with pytest.raises(
        ImagePullFailedError, match=f"{registry.address}/team/app: blob {LAYER}: 503 .*4 attempts"
    ):
        await store.pull(reference)
    assert registry.fetched(LAYER) == 4
    assert files_of(home) == [] and rows_of(home)["manifest"] == 0


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_other_refusals_fail_at_once(status, registry, store):
    reference = registry.serve(IMAGE)
    errors = json.dumps(
        {"errors": [{"code": "DENIED", "message": "not \x1b[31mfor you" + "!" * 500}]}
    ).encode()
    registry.behave(LAYER, lambda handler: reply(handler, status, errors), times=99)
    with pytest.raises(ImagePullFailedError, match=rf"{status} .*: DENIED: not \[31mfor you!+$") as caught:
        await store.pull(reference)
    assert registry.fetched(LAYER) == 1 and len(str(caught.value)) < 600


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_honoured(form, registry, store):
    reference = registry.serve(IMAGE)
    value = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    registry.behave("manifests/1", lambda handler: reply(handler, 429, b"", {"Retry-After": value}))
    started = time.monotonic()
    await check(store, reference)
    assert time.monotonic() - started >= 0.9


async def test_a_broken_connection_is_resumed_where_it_broke(registry, store):
    reference = registry.serve(IMAGE)
    cuts = iter([700_000, 1_200_000])

    def cut(handler):
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        end = next(cuts)
        headers = {"Content-Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"}
        reply(handler, 206 if start else 200, BODY[start:], headers, cut=end - start)

    registry.behave(LAYER, cut, times=2)
    await check(store, reference)
    ranges = [headers.get("Range") for path, headers in registry.requests if path.endswith(LAYER)]
    assert ranges == [None, "bytes=700000-", "bytes=1200000-"]


async def test_a_cancelled_pull_leaves_what_it_has_and_no_lock_and_the_next_goes_on(registry, store, home):
    reference = registry.serve(IMAGE)
    registry.behave(
        LAYER, lambda handler: (reply(handler, 200, BODY[:900_000], stated=len(BODY)), time.sleep(1))
    )
    reached = asyncio.Event()
    task = asyncio.ensure_future(
        store.pull(
            reference, progress=lambda e: reached.set() if (e.downloaded_bytes or 0) >= 512 << 10 else None
        )
    )
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [part] = files_of(home)
    assert part == f"downloads/{LAYER[7:]}.part" and rows_of(home)["manifest"] == 0
    size = (home / "cache" / part).stat().st_size
    assert size >= 512 << 10
    await asyncio.wait_for(check(store, reference), 20)
    assert registry.requests[-1][1]["Range"] == f"bytes={size}-"
    assert not (home / "cache" / part).exists()


@pytest.mark.parametrize("answer", ["whole", "416", "other range"])
async def test_a_registry_that_does_not_resume(answer, registry, store, home):
    part = home / "cache" / "downloads" / f"{LAYER[7:]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY[:1000])
    reference = registry.serve(IMAGE)

    def behave(handler):
        if answer == "whole":
            reply(handler, 200, BODY)
        elif answer == "416":
            reply(handler, 416, b"")
        else:
            reply(handler, 206, BODY[2000:], {"Content-Range": f"bytes 2000-{len(BODY) - 1}/{len(BODY)}"})

    registry.behave(LAYER, behave)
    await check(store, reference)


@pytest.mark.parametrize("rest", [b"?" * 1000, b"?" * len(BODY), b"?" * (len(BODY) + 5)])
async def test_what_an_earlier_try_left_damaged_is_fetched_again(rest, registry, store, home):
    part = home / "cache" / "downloads" / f"{LAYER[7:]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(rest)
    await check(store, registry.serve(IMAGE))


async def test_a_stored_blob_that_a_power_loss_damaged_is_fetched_again(registry, store, home):
    reference = registry.serve(IMAGE)
    stored = await check(store, reference)
    stored.rootfs.unlink()
    blob = home / "cache" / "blobs" / "sha256" / LAYER[7:]
    blob.write_bytes(bytes(blob.stat().st_size))
    await check(store, reference)
    assert blob.read_bytes() == BODY


# Lies


def lying(what):
    """A registry's answer, and the error that must come of it."""
    other = bytes([BODY[0]]) + BODY[1:-1] + b"?"
    config = IMAGE.manifest["config"]["digest"]
    return {
        "layer of another digest": (
            LAYER,
            other,
            f"digest mismatch for layer {LAYER}: expected {LAYER}, got {digest(other)}",
        ),
        "layer too long": (LAYER, BODY + b"x", "is larger than the .* bytes of its descriptor"),
        "layer too short": (LAYER, BODY[:-1], "connection ended after"),
        "config of another digest": (
            config,
            IMAGE.config_bytes[:-1] + b" ",
            f"digest mismatch for config {config}",
        ),
        "config too long": (config, IMAGE.config_bytes + b" ", "is larger than"),
        "manifest by digest": (
            IMAGE.digest,
            IMAGE.manifest_bytes + b" ",
            f"digest mismatch for manifest {IMAGE.digest}",
        ),
        "endless manifest": ("manifests/1", b" " * (5 << 20), "is larger than 4194304 bytes"),
        "manifest that is none": ("manifests/1", b"<html>", "is not valid JSON"),
        "schema 1": ("manifests/1", b'{"schemaVersion": 1}', "schema 1, which is not supported"),
        "image and index in one": (
            "manifests/1",
            b'{"manifests": [], "layers": [], "config": {}}',
            "neither an image manifest nor an index",
        ),
        "no descriptor": ("manifests/1", b'{"layers": [1], "config": {}}', "must be a JSON object"),
        "negative size": (
            "manifests/1",
            json.dumps({"layers": [{"digest": LAYER, "size": -1}], "config": {}}).encode(),
            "size must be a number of bytes",
        ),
    }[what]  # fmt: skip


LIES = [
    "layer of another digest", "layer too long", "layer too short", "config of another digest",
    "config too long", "manifest by digest", "endless manifest", "manifest that is none", "schema 1",
    "image and index in one", "no descriptor", "negative size",
]  # fmt: skip


@pytest.mark.parametrize("what", LIES)
async def test_a_lie_is_found_and_dropped(what, registry, store, home):
    reference = registry.serve(IMAGE)
    target, body, reason = lying(what)
    if what == "manifest by digest":
        reference = f"{registry.address}/team/app@{IMAGE.digest}"
    registry.behave(target, lambda handler: reply(handler, 200, body), times=99)
    with pytest.raises(ImageError, match=reason):
        await store.pull(reference)
    left = [name for name in files_of(home) if not (what == "layer too short" and name.endswith(".part"))]
    assert left == [] and rows_of(home)["manifest"] == 0
    registry.behaviours.clear()
    await check(store, reference)


async def test_a_tag_is_checked_against_the_digest_header(registry, store):
    reference = registry.serve(IMAGE)
    headers = {"Docker-Content-Digest": digest(b"other"), "Content-Type": MANIFEST_TYPE}
    registry.behave(
        "manifests/1", lambda handler: reply(handler, 200, IMAGE.manifest_bytes, headers), times=99
    )
    with pytest.raises(ImagePullFailedError, match="digest mismatch for manifest"):
        await store.pull(reference)


async def test_a_layer_that_is_not_what_the_config_says(registry, store, home):
    wrong = Built([tar(entry("f", b""))], diff_ids=[digest(b"other")], name="x:1")
    layer = wrong.manifest["layers"][0]["digest"]
    with pytest.raises(
        ImageError, match=f"digest mismatch for layer {layer}: expected {digest(b'other')}, got "
    ):
        await store.pull(registry.serve(wrong))
    evil = Built([tar(entry("../../etc/cron.d/x", b""))], name="x:1")
    with pytest.raises(ImageError, match="materialization failed for layer .*path traversal"):
        await store.pull(registry.serve(evil))
    assert rows_of(home)["manifest"] == 0 and not [name for name in files_of(home) if "rootfs" in name]


async def test_content_decides_over_the_media_type(registry, store):
    """Every layer is called gzip here; this one is zstd."""
    image = Built(IMAGE.layers, compress="zstd", name="x:1")
    assert "gzip" in image.manifest["layers"][0]["mediaType"]
    await check(store, registry.serve(image))


async def test_a_layer_that_is_here_in_another_compression_is_not_fetched(registry, store):
    await check(store, registry.serve(IMAGE, "team/gzip"))
    image = Built(IMAGE.layers, compress="zstd", name="x:1", config={"Cmd": ["x"]})
    await check(store, registry.serve(image, "team/zstd"))
    assert registry.fetched(digest(compress(IMAGE.layers[0], "zstd"))) == 0


async def test_an_index_in_an_index_in_an_index(registry, store):
    registry.serve(IMAGE)
    inner, kind = IMAGE.descriptor(), "application/vnd.oci.image.index.v1+json"
    for depth in range(6):
        body = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [inner]}).encode()
        registry.manifest("team/app", digest(body), body, kind)
        registry.manifest("team/app", f"nested{depth}", body, kind)
        inner = {"mediaType": kind, "digest": digest(body), "size": len(body), "platform": inner["platform"]}
    await check(store, f"{registry.address}/team/app:nested2")
    with pytest.raises(ImagePullFailedError, match="indexes nested more than 3 deep"):
        await store.pull(f"{registry.address}/team/app:nested3")


async def test_attestations_and_entries_without_platform_are_passed_over(registry, store):
    registry.serve(IMAGE)
    noise = {"mediaType": MANIFEST_TYPE, "digest": digest(b"x"), "size": 1}
    mine = IMAGE.descriptor()
    attestation = {
        **noise, "platform": mine["platform"],
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }  # fmt: skip
    body = json.dumps({"schemaVersion": 2, "manifests": [noise, attestation, mine]}).encode()
    registry.manifest("team/app", "noisy", body, "application/vnd.oci.image.index.v1+json")
    await check(store, f"{registry.address}/team/app:noisy")


# Tokens and redirects


async def test_an_anonymous_token_is_fetched_once_and_renewed_when_refused(registry, store):
    reference = registry.serve(IMAGE)
    registry.token = "first"

    def give(handler):
        reply(handler, 200, json.dumps({"token": registry.token, "expires_in": 300}).encode())

    registry.behave("/token", give, times=99)
    await check(store, reference)
    assert registry.fetched("/token?scope=repository%3Ateam%2Fapp%3Apull&service=test") == 1
    registry.token = "second"
    await check(store, reference, force=True)
    token_requests = [headers for path, headers in registry.requests if path.startswith("/token")]
    assert all("Authorization" not in headers for headers in token_requests)


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        ('Basic realm="x"', "401 Unauthorized: it wants a user name and password"),
        (None, "refuses anonymous access"),
        ('Bearer realm="ftp://x/"', "no usable address"),
        ("Bearer", "no usable address"),
    ],
)
async def test_a_challenge_that_nobody_can_answer(challenge, reason, registry, store):
    reference = registry.serve(IMAGE)
    headers = {"WWW-Authenticate": challenge} if challenge else {}
    registry.behave("manifests/1", lambda handler: reply(handler, 401, b"", headers), times=99)
    with pytest.raises(ImagePullFailedError, match=reason):
        await store.pull(reference)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b"x" * (2 << 20)]
)
async def test_a_token_answer_that_is_none(answer, registry, store):
    reference = registry.serve(IMAGE)
    registry.token = "t"
    registry.behave("/token", lambda handler: reply(handler, 200, answer), times=99)
    with pytest.raises(ImagePullFailedError, match="token"):
        await store.pull(reference)


async def test_a_registry_that_refuses_its_own_token_is_asked_no_more(registry, store):
    reference = registry.serve(IMAGE)
    registry.token = "right"
    registry.behave("/token", lambda handler: reply(handler, 200, b'{"token": "wrong"}'), times=99)
    with pytest.raises(ImagePullFailedError, match="401 Unauthorized"):
        await store.pull(reference)
    assert registry.fetched("/token") == 1


async def test_a_redirect_is_followed_and_the_token_stays_behind(registry, store):
    reference = registry.serve(IMAGE)
    registry.token = "secret"
    registry.behave("/token", lambda handler: reply(handler, 200, b'{"token": "secret"}'), times=99)
    with ScriptedRegistry() as elsewhere:
        elsewhere.content["/cdn/layer"] = ("application/octet-stream", BODY)
        target = {"Location": f"http://{elsewhere.address}/cdn/layer"}
        registry.behave(LAYER, lambda handler: reply(handler, 307, b"", target), times=99)
        await check(store, reference)
        [(_, headers)] = elsewhere.requests
        assert "Authorization" not in headers
    assert any(headers.get("Authorization") == "Bearer secret" for _, headers in registry.requests)


async def test_redirects_end(registry, store):
    reference = registry.serve(IMAGE)
    registry.behave(LAYER, lambda handler: reply(handler, 302, b"", {"Location": handler.path}), times=99)
    with pytest.raises(ImagePullFailedError, match="more than 5 redirects"):
        await store.pull(reference)
    assert registry.fetched(LAYER) == 6
    registry.behave(
        LAYER, lambda handler: reply(handler, 302, b"", {"Location": "file:///etc/passwd"}), times=99
    )
    with pytest.raises(ImagePullFailedError, match="unusable address"):
        await store.pull(reference)


# TLS


async def test_tls_with_its_own_certificates_and_never_down_to_http(certificate, store, registry, tmp_path):
    with ScriptedRegistry(certificate) as secure:
        reference = secure.serve(IMAGE)
        await check(store, reference, ca_certs=certificate[0])
        assert secure.requests[0][0] == "/v2/team/app/manifests/1"
        target = {"Location": f"http://{registry.address}/cdn"}
        secure.behave(LAYER, lambda handler: reply(handler, 307, b"", target), times=99)
        with pytest.raises(ImagePullFailedError, match="redirect from https to http .* is not followed"):
            await store.pull(reference, ca_certs=certificate[0], force=True)
        realm = {"WWW-Authenticate": f'Bearer realm="http://{registry.address}/token"'}
        secure.behave(LAYER, lambda handler: reply(handler, 401, b"", realm), times=99)
        with pytest.raises(ImagePullFailedError, match="not on https as the registry is"):
            await store.pull(reference, ca_certs=certificate[0], force=True)
        assert registry.requests == []


async def test_a_certificate_that_is_not_trusted_is_not_retried(certificate, store, tmp_path):
    """The given file names another authority, so that the check is made for a loopback registry as well."""
    other = tmp_path / "other.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=other", "-out", other, "-keyout", tmp_path / "key",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    with ScriptedRegistry(certificate) as secure:
        with pytest.raises(ImagePullFailedError, match="certificate not accepted"):
            await store.pull(secure.serve(IMAGE), ca_certs=other)
        assert secure.requests == []


async def test_loopback_registries_may_be_either(certificate, store, registry):
    """As docker has it: https is tried first, its certificate taken as it is, then http."""
    with ScriptedRegistry(certificate) as secure:
        await check(store, secure.serve(IMAGE, "team/secure"))
    await check(store, registry.serve(IMAGE, "team/plain"))


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "failed to read CA certs from `"), (b"no", "invalid PEM certificate: ")]
)
async def test_a_bad_certificate_file(content, reason, store, registry, tmp_path):
    if content is not None:
        (tmp_path / "ca").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        await store.pull(registry.serve(IMAGE), ca_certs=tmp_path / "ca")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:1", True), ("127.9.9.9", True),
        ("[::1]:5000", True), ("localhost.example.com", False), ("10.0.0.1", False), ("docker.io", False),
        ("127.0.0.1.example.com", False), ("[::2]", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host, expected):
    assert is_loopback(host) is expected


async def test_nobody_there(store):
    with pytest.raises(ImagePullFailedError, match=r"127.0.0.1:1/x: ConnectError.*\(4 attempts\)"):
        await store.pull("127.0.0.1:1/x")
