"""A registry of the OCI distribution API, over HTTP(S), asked without trusting its answers.

Sizes are bounded, digests are left to the caller to verify over the bytes as served, redirects are
followed by hand: a token stays with the host that asked for it and https never becomes http. Plain HTTP is
used when configured, or, as docker does, by a registry on the loopback interface that has no TLS. Only what
is on that interface itself may go unverified: not the token service and storage that its registry names.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from msgspec import Struct

from microsandbox.errors import ImageError, ImagePullFailedError
from microsandbox.image.credentials import Credentials
from microsandbox.image.documents import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from microsandbox.image.limits import MAX_MANIFEST_BYTES
from microsandbox.image.reference import DEFAULT_REGISTRY
from microsandbox.image.registry_auth import (
    MAX_TOKEN_BYTES,
    AuthError,
    Token,
    parse_challenge,
    parse_token,
    wants_basic,
)
from microsandbox.version import DISTRIBUTION_VERSION

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_HUB_ENDPOINT = "registry-1.docker.io"
_ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: How much of an error answer is read, in bytes, and shown, in characters.
_MAX_ERROR_BYTES, _MAX_ERROR_TEXT = 8192, 200
_CONNECT_SECONDS, _READ_SECONDS = 15.0, 30.0
#: How long a loopback registry may take to show that it speaks TLS: a plain one may just wait for more.
_PROBE_SECONDS = 2.0


class RetryPolicy(Struct, frozen=True):
    """How failures that may pass are retried. Seconds; the wait doubles each time, up to ``longest``."""

    attempts: int = 5
    first: float = 0.5
    longest: float = 15.0
    #: The longest wait that a registry may ask for with Retry-After.
    longest_asked: float = 60.0

    def wait(self, failures: int, asked: float | None) -> float:
        if asked is not None:
            return min(asked, self.longest_asked)
        base: float = min(self.first * 2 ** min(failures - 1, 16), self.longest)
        return base * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients out, no secret


class TransientError(Exception):
    """A failure that may pass: a lost connection, 429, 5xx. ``retry_after`` is in seconds."""

    def __init__(self, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class RefusedError(ImagePullFailedError):
    """The registry said no, with this HTTP status."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.status = status


class ServedManifest(Struct, frozen=True):
    """A manifest as served."""

    content: bytes
    media_type: str | None
    digest_header: str | None


class Registry:
    """One registry host; an async context manager. Everything raises ImagePullFailedError."""

    def __init__(
        self,
        host: str,
        *,
        insecure: bool = False,
        ca_certs: Path | None = None,
        common_ca_certs: Path | None = None,
        credentials: Credentials | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.host = host
        self.retry = retry or RetryPolicy()
        self._authority = _HUB_ENDPOINT if host == DEFAULT_REGISTRY else host
        self._loopback = is_loopback(host)
        self._ca_certs = ca_certs
        self._common_ca_certs = common_ca_certs
        self._credentials = credentials
        #: Whether the registry wants them with each request, and no token.
        self._basic = False
        self._base: str | None = f"http://{self._authority}" if insecure else None
        self._tokens: dict[str, Token] = {}
        #: By whether they are for the loopback interface; the other one is made when it is needed.
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._making = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._client(on_loopback=self._loopback)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def _client(self, *, on_loopback: bool) -> httpx.AsyncClient:
        async with self._making:
            if on_loopback not in self._clients:
                self._clients[on_loopback] = await asyncio.to_thread(self._new_client, on_loopback)
            return self._clients[on_loopback]

    def _new_client(self, on_loopback: bool) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            verify=_tls_context(
                filter(None, (self._ca_certs, self._common_ca_certs)),
                verify=not on_loopback or self._ca_certs is not None,
            ),
            timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS, pool=None),
            follow_redirects=False,
            trust_env=not on_loopback,
            headers={"User-Agent": f"microsandbox-python/{DISTRIBUTION_VERSION}"},
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=8),
        )

    # what is asked

    async def manifest(self, repository: str, target: str) -> ServedManifest:
        """The manifest or index of a tag or digest."""

        async def fetch() -> ServedManifest:
            headers = {"Accept": _ACCEPT}
            async with self.get(repository, f"manifests/{target}", headers) as response:
                content = await _bounded(response, MAX_MANIFEST_BYTES, f"manifest of {repository}")
                media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
                return ServedManifest(
                    content, media_type or None, response.headers.get("Docker-Content-Digest")
                )

        return await self.retrying(fetch, repository)

    async def small_blob(self, repository: str, digest: str, limit: int) -> bytes:
        """A blob of at most ``limit`` bytes."""

        async def fetch() -> bytes:
            async with self.get(repository, f"blobs/{digest}", {}) as response:
                return await _bounded(response, limit, f"blob {digest}")

        return await self.retrying(fetch, repository)

    async def retrying(self, operation: Callable[[], Awaitable[T]], repository: str) -> T:
        """The operation's result, tried again after a TransientError."""
        failures = 0
        while True:
            try:
                return await operation()
            except TransientError as error:
                failures += 1
                if failures >= self.retry.attempts:
                    raise self.failure(repository, f"{error} ({failures} attempts)") from error
                await asyncio.sleep(self.retry.wait(failures, error.retry_after))

    def failure(self, repository: str, detail: str) -> ImagePullFailedError:
        """An error that names the registry and the repository."""
        return ImagePullFailedError(f"registry error: {self.host}/{repository}: {detail}")

    # how it is asked

    @asynccontextmanager
    async def get(
        self, repository: str, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """An answer with a good status, its body unread. Raises TransientError as well."""
        base = await self._endpoint()
        url = f"{base}/v2/{repository}/{path}"
        renewed, redirects = False, 0
        while True:
            at_registry = _origin(url) == _origin(base)
            sent = {**headers, "Accept-Encoding": "identity"}
            if at_registry:
                sent |= self._authorization(repository)
            response = await self._send(url, sent)
            try:
                if response.status_code in _REDIRECTS:
                    redirects += 1
                    url = self._redirected(repository, url, response, redirects)
                elif response.status_code == 401 and at_registry and not renewed:
                    renewed = True
                    await self._authorize(repository, base, response)
                elif response.status_code >= 400:
                    raise await self._refusal(repository, path, response)
                else:
                    with _transport_errors():
                        yield response
                    return
            finally:
                await response.aclose()

    def _authorization(self, repository: str) -> dict[str, str]:
        token = self._tokens.get(repository)
        if token is not None and token.valid:
            return {"Authorization": f"Bearer {token.text}"}
        if self._basic and self._credentials is not None:
            return {"Authorization": self._credentials.basic}
        return {}

    async def _send(
        self, url: str, headers: Mapping[str, str], *, seconds: float | None = None
    ) -> httpx.Response:
        import httpx

        with _transport_errors(_origin(url)):
            client = await self._client(on_loopback=self._loopback and _on_loopback(httpx.URL(url)))
            timeout = client.timeout if seconds is None else seconds
            request = client.build_request("GET", url, headers=dict(headers), timeout=timeout)
            return await client.send(request, stream=True)

    async def _endpoint(self) -> str:
        """Where the API is: https, or http for a loopback registry that has no TLS."""
        if self._base is None:
            secure = f"https://{self._authority}"
            if self._loopback and self._ca_certs is None:
                try:
                    response = await self._send(f"{secure}/v2/", {}, seconds=_PROBE_SECONDS)
                    await response.aclose()
                except TransientError:
                    secure = f"http://{self._authority}"
            self._base = secure
        return self._base

    def _redirected(self, repository: str, url: str, response: httpx.Response, count: int) -> str:
        import httpx

        if count > _MAX_REDIRECTS:
            raise self.failure(repository, f"more than {_MAX_REDIRECTS} redirects")
        try:
            target = httpx.URL(url).join(response.headers.get("Location", ""))
        except httpx.InvalidURL as error:
            raise self.failure(repository, f"redirect to an unusable address: {error}") from error
        if target.scheme not in ("http", "https") or not target.host:
            raise self.failure(repository, "redirect to an unusable address")
        if target.scheme == "http" and url.startswith("https:"):
            raise self.failure(repository, f"redirect from https to http ({target.host}) is not followed")
        return str(target)

    async def _authorize(self, repository: str, base: str, response: httpx.Response) -> None:
        """Get what the 401 asks for: a token for who we are or for anybody, or our name each time."""
        self._tokens.pop(repository, None)
        wanted = response.headers.get("WWW-Authenticate")
        self._basic = self._credentials is not None and wants_basic(wanted)
        if self._basic:
            return
        headers = {"Accept": "application/json"}
        try:
            url = parse_challenge(wanted, base).token_url(repository)
            if self._credentials is not None:
                with _transport_errors(_origin(url)):
                    _check_token_service(url, base)
                headers["Authorization"] = self._credentials.basic
            answer = await self._send(url, headers)
            try:
                if answer.status_code != 200:
                    raise await self._refusal(repository, "token", answer)
                content = await _bounded(answer, MAX_TOKEN_BYTES, "token answer")
            finally:
                await answer.aclose()
            self._tokens[repository] = parse_token(content)
        except AuthError as error:
            raise self.failure(repository, f"401 Unauthorized: {error}") from error

    async def _refusal(self, repository: str, path: str, response: httpx.Response) -> Exception:
        """The error of an answer with a bad status."""
        try:
            content = await _bounded(response, _MAX_ERROR_BYTES, "error answer")
        except (ImageError, TransientError):
            content = b""
        status = response.status_code
        detail = f"{status} {response.reason_phrase} for {path}"
        reason = _reason(content)
        if reason:
            detail += f": {reason}"
        if status == 429 or status >= 500:
            return TransientError(detail, _retry_after(response.headers.get("Retry-After")))
        return RefusedError(f"registry error: {self.host}/{repository}: {detail}", status)


def is_loopback(host: str) -> bool:
    """Whether a registry host is this machine's own: localhost, 127.0.0.0/8 or ::1."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _on_loopback(url: httpx.URL) -> bool:
    return is_loopback(url.netloc.decode("ascii"))


def _check_token_service(url: str, base: str) -> None:
    """Raises AuthError for one that credentials must not go to: others could read them on the way."""
    import httpx

    service, registry = httpx.URL(url), httpx.URL(base)
    insecure = registry.scheme == "http" and registry.host == service.host
    if service.scheme != "https" and not insecure and not _on_loopback(service):
        raise AuthError(
            f"its token service {service.host} is on plain HTTP, where credentials are not sent; "
            "have it served over https, or remove the registry's auth to pull as anybody"
        )


def _load_ca_certs(context: ssl.SSLContext, path: Path) -> None:
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ImageError(f"failed to read CA certs from `{path}`: {error.strerror}") from error
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ImageError(f"invalid PEM certificate: {path}: {error}") from error


def _tls_context(ca_certs: Iterable[Path], *, verify: bool) -> ssl.SSLContext:
    """Trust in the host's certificates, httpx's and the given ones.

    ``verify=False`` is for loopback registries: nobody is between, as docker has it.
    """
    import certifi

    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(cafile=certifi.where())
    for path in ca_certs:
        _load_ca_certs(context, path)
    return context


def _origin(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


@contextmanager
def _transport_errors(origin: str = "") -> Iterator[None]:
    """httpx's errors as ours: lasting ones of this registry, transient all others."""
    import httpx

    try:
        yield
    except httpx.InvalidURL as error:
        raise ImagePullFailedError(f"registry error: {origin}: unusable address: {error}") from error
    except httpx.HTTPError as error:
        lasting = _certificate_failure(error)
        if lasting is not None:
            raise ImagePullFailedError(f"registry error: {origin}: {lasting}") from error
        name = type(error).__name__
        raise TransientError(f"{name}: {error}" if str(error) else name) from error


def _certificate_failure(error: BaseException | None) -> str | None:
    """What is wrong with the certificate: that does not pass by itself."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or (
            isinstance(error, Exception) and "CERTIFICATE_VERIFY_FAILED" in str(error)
        ):
            return f"certificate not accepted: {error}"
        error = error.__cause__ or error.__context__
    return None


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which has a number or a date."""
    if value is None:
        return None
    if value.strip().isdigit() and len(value) < 10:
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def _reason(content: bytes) -> str:
    """``CODE: message`` of a registry's error answer, bounded and printable."""
    try:
        first = json.loads(content)["errors"][0]
        text = ": ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return "".join(c for c in text[:_MAX_ERROR_TEXT] if c.isprintable())


async def _bounded(response: httpx.Response, limit: int, what: str) -> bytes:
    """The whole body. Raises ImageError when it is larger than ``limit``, TransientError when it breaks."""
    content = bytearray()
    with _transport_errors():
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > limit:
                raise ImagePullFailedError(f"registry error: {what} is larger than {limit} bytes")
    return bytes(content)
