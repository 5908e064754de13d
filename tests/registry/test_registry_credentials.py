"""Credentials and trust as config.json has them, at a registry that asks and at one that answers falsely."""

import base64
import contextlib
import json
import subprocess

import pytest

from microsandbox.errors import ImageError, ImagePullFailedError, InvalidConfigError, NotSupportedYetError
from microsandbox.image.credentials import Credentials
from microsandbox.image.registry import RetryPolicy, _check_token_service
from microsandbox.image.registry_auth import AuthError
from microsandbox.image.store import ImageStore
from microsandbox.store.config_file import load_config
from microsandbox.store.database import Database
from microsandbox.store.home import Home
from tests.registry.conftest import serving_registry
from tests.registry.scripted_registry import ScriptedRegistry, reply
from tests.unit.image.image_building import Built, entry, layout_files, tar, write_layout

IMAGE = Built([tar(entry("f", b"x" * 1000))], name="x:1")
LAYER = IMAGE.manifest["layers"][0]["digest"]
#: bcrypt of "right".
HASH = "$2b$04$2gvKPXNeemkyov5BHjxMDeJWvNCZsfxjJBNWyWDGtv6.IT820gat2"


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A store with this ``registries`` in its config.json, and TOKEN in the environment."""
    monkeypatch.setenv("TOKEN", "right")

    def configured(registries):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"registries": registries}))
        home = Home(tmp_path / "home", load_config(path))
        return ImageStore(home, Database(home.database), retry=RetryPolicy(attempts=2, first=0.01))

    return configured


def auth(**source):
    return {"username": "me", **(source or {"password_env": "TOKEN"})}


def entries(address, **source):
    return {"hosts": {address: {"auth": auth(**source)}}}


@pytest.fixture(scope="module")
def guarded_registry(tmp_path_factory):
    """The address of a docker-registry that wants name and password, with IMAGE as team/app:1."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "htpasswd").write_text(f"me:{HASH}\n")
    guard = f"auth: {{htpasswd: {{realm: test, path: '{directory}/htpasswd'}}}}\n"
    with serving_registry(directory, guard) as address:
        layout = write_layout(directory / "layout", layout_files(IMAGE))
        subprocess.run(
            [
                "skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false",
                "--dest-creds=me:right", f"oci:{layout}:x:1", f"docker://{address}/team/app:1",
            ],
            check=True,
        )  # fmt: skip
        yield address


@pytest.mark.parametrize("place", ["hosts", "auth"])
async def test_a_registry_that_wants_a_name_gets_it(guarded_registry, configured, place):
    registries = {
        "hosts": entries(guarded_registry),
        "auth": {"auth": {guarded_registry: auth()}},
    }
    stored = await configured(registries[place]).pull(f"{guarded_registry}/team/app:1")
    assert stored.manifest_digest == IMAGE.digest


async def test_a_wrong_password_is_refused_without_being_shown(guarded_registry, configured, monkeypatch):
    monkeypatch.setenv("TOKEN", "wrong-password")
    with pytest.raises(ImagePullFailedError, match="401 Unauthorized") as caught:
        await configured(entries(guarded_registry)).pull(f"{guarded_registry}/team/app:1")
    assert "wrong-password" not in str(caught.value)
    assert "right" not in repr(Credentials("me", "right"))


async def test_without_an_entry_a_pull_is_anonymous(guarded_registry, configured):
    with pytest.raises(ImagePullFailedError, match="it wants a user name and password"):
        await configured(entries("other.example")).pull(f"{guarded_registry}/team/app:1")


async def test_a_variable_that_is_not_set_is_named_before_anybody_is_asked(registry, configured, monkeypatch):
    monkeypatch.delenv("TOKEN")
    reference = registry.serve(IMAGE)
    expected = f"registry auth for {registry.address}: environment variable `TOKEN` is not set"
    with pytest.raises(InvalidConfigError, match=expected):
        await configured(entries(registry.address)).pull(reference)
    assert registry.requests == []


@pytest.mark.parametrize("source", [{"store": "keyring"}, {"secret_name": "mine"}])
async def test_sources_that_are_not_there_refuse_their_registry_only(registry, configured, source):
    reference = registry.serve(IMAGE)
    [key] = source
    with pytest.raises(
        NotSupportedYetError,
        match=f"^registries.hosts.{registry.address}.auth.{key} in config.json .*not supp",
    ):
        await configured(entries(registry.address, **source)).pull(reference)
    await configured(entries("other.example", **source)).pull(reference)


@contextlib.contextmanager
def layers_elsewhere(registry):
    """Another host, which the registry sends to for its layer: no credentials may go there."""
    with ScriptedRegistry() as elsewhere:
        elsewhere.content["/cdn"] = ("application/octet-stream", IMAGE.packed[0])
        target = {"Location": f"http://{elsewhere.address}/cdn"}
        registry.behave(LAYER, lambda handler: reply(handler, 307, b"", target), times=9)
        yield
        assert all("Authorization" not in headers for _, headers in elsewhere.requests)


async def test_the_token_service_is_told_who_asks_and_nobody_else(registry, configured):
    reference = registry.serve(IMAGE)
    registry.token = "secret"
    registry.behave("/token", lambda handler: reply(handler, 200, b'{"token": "secret"}'), times=9)
    with layers_elsewhere(registry):
        await configured(entries(registry.address)).pull(reference)
    basic = f"Basic {base64.b64encode(b'me:right').decode()}"
    for path, headers in registry.requests:
        expected = (basic,) if path.startswith("/token") else (None, "Bearer secret")
        assert headers.get("Authorization") in expected, path


async def test_name_and_password_stay_with_the_registry_that_wants_them(registry, configured):
    reference = registry.serve(IMAGE)
    wanted = {"WWW-Authenticate": 'Basic realm="x"'}

    def ask(handler):
        return "Authorization" not in handler.headers and reply(handler, 401, b"", wanted) is None

    registry.behave("manifests/1", ask, times=9)
    with layers_elsewhere(registry):
        await configured(entries(registry.address)).pull(reference)


@pytest.fixture
def outside(monkeypatch):
    """The address of a server of ours that is not taken for loopback; Linux connects to it all the same."""
    monkeypatch.setenv("NO_PROXY", "*")
    return lambda server: server.address.replace("127.0.0.1", "0.0.0.0")


def asks_for_token(registry, realm):
    headers = {"WWW-Authenticate": f'Bearer realm="{realm}/token"'}
    registry.behave("manifests/1", lambda handler: reply(handler, 401, b"", headers), times=99)


async def test_a_token_service_elsewhere_is_verified_also_for_a_loopback_registry(
    certificate, registry, configured, outside
):
    reference = registry.serve(IMAGE)
    with ScriptedRegistry(certificate) as service:
        asks_for_token(registry, f"https://{outside(service)}")
        for registries in (entries(registry.address), {}):
            with pytest.raises(
                ImagePullFailedError, match=r"https://0\.0\.0\.0:\d+: certificate not accepted"
            ):
                await configured(registries).pull(reference)
        assert service.requests == []


async def test_storage_elsewhere_is_verified_also_for_a_loopback_registry(
    certificate, registry, configured, outside
):
    reference = registry.serve(IMAGE)
    with ScriptedRegistry(certificate) as storage:
        target = {"Location": f"https://{outside(storage)}/cdn"}
        registry.behave(LAYER, lambda handler: reply(handler, 307, b"", target), times=9)
        with pytest.raises(ImagePullFailedError, match="certificate not accepted"):
            await configured({}).pull(reference)
        assert storage.requests == []


async def test_credentials_do_not_go_over_plain_http_to_a_token_service_elsewhere(
    registry, configured, outside
):
    reference = registry.serve(IMAGE)
    with ScriptedRegistry() as service:
        asks_for_token(registry, f"http://{outside(service)}")
        expected = (
            r"401 .*its token service 0\.0\.0\.0 is on plain HTTP, .*; have it served over https, or remove"
        )
        with pytest.raises(ImagePullFailedError, match=expected):
            await configured(entries(registry.address)).pull(reference)
        assert service.requests == []
        with pytest.raises(ImagePullFailedError):
            await configured({}).pull(reference)  # as anybody
        assert service.fetched("/token") > 0


@pytest.mark.parametrize("realm", ["itself", "loopback"])
async def test_a_registry_that_is_insecure_on_purpose_may_have_a_token_service_that_is(
    registry, configured, outside, realm
):
    address = outside(registry)
    reference = registry.serve(IMAGE).replace(registry.address, address)
    service = f"http://{address if realm == 'itself' else registry.address}/token"

    def ask(handler):
        headers = {"WWW-Authenticate": f'Bearer realm="{service}"'}
        return "Authorization" not in handler.headers and reply(handler, 401, b"", headers) is None

    registry.behave("manifests/1", ask, times=9)
    registry.behave("/token", lambda handler: reply(handler, 200, b'{"token": "secret"}'), times=9)
    registries = {"hosts": {address: {"insecure": True, "auth": auth()}}}
    assert (await configured(registries).pull(reference)).manifest_digest == IMAGE.digest


@pytest.mark.parametrize(
    ("service", "registry", "allowed"),
    [
        ("https://auth.example/t", "https://r.example", True),
        ("https://auth.example/t", "http://localhost:5000", True),
        ("http://r.example:8080/t", "http://r.example:5000", True),
        ("http://[::1]:5001/t", "http://r.example", True),
        ("http://127.0.0.1@auth.example/t", "http://127.0.0.1:5000", False),
        ("http://auth.example/t", "http://r.example", False),
        ("http://r.example/t", "https://r.example", False),
        ("http://localhost.example/t", "http://localhost", False),
    ],
)
def test_where_credentials_may_go(service, registry, allowed):
    refused = pytest.raises(AuthError, match="plain HTTP")
    with contextlib.nullcontext() if allowed else refused:
        _check_token_service(service, registry)


async def test_certificates_for_all_registries_and_for_one(certificate, configured):
    """Loopback registries need no certificate; one that is configured for them must be theirs."""
    with ScriptedRegistry(certificate) as secure:
        reference = secure.serve(IMAGE)
        missing = "/nowhere/ca.pem"
        own = {"hosts": {secure.address: {"ca_certs": str(certificate[0])}}}
        await configured(own).pull(reference)
        await configured({"ca_certs": missing}).pull(reference, force=True)
        for registries in ({**own, "ca_certs": missing}, {"hosts": {secure.address: {"ca_certs": missing}}}):
            with pytest.raises(
                ImageError, match="failed to read CA certs from `/nowhere/ca.pem`: No such file"
            ):
                await configured(registries).pull(reference, force=True)


async def test_plain_http_for_all_registries_and_for_one(certificate, configured):
    with ScriptedRegistry(certificate) as secure:
        reference = secure.serve(IMAGE)
        for registries in ({"insecure": True}, {"hosts": {secure.address: {"insecure": True}}}):
            with pytest.raises(ImagePullFailedError):
                await configured(registries).pull(reference)
        assert secure.requests == [], "it speaks TLS, and plain HTTP was meant"
