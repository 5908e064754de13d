"""The challenge of a registry that wants to know who asks, and the tokens that its token service gives."""

from __future__ import annotations

import json
import re
import time
from urllib.parse import urlencode, urlsplit

from msgspec import Struct

#: What a token answer may have, in bytes.
MAX_TOKEN_BYTES = 1 << 20
#: Lifetime that the specification gives tokens without one, in seconds.
_DEFAULT_LIFETIME = 60.0
#: A token is renewed this long before it ends, in seconds.
_MARGIN = 5.0

_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class AuthError(ValueError):
    """A challenge or a token answer cannot be used."""


class Challenge(Struct, frozen=True):
    """``WWW-Authenticate: Bearer realm=…,service=…,scope=…``."""

    realm: str
    service: str | None
    scope: str | None

    def token_url(self, repository: str) -> str:
        """Where to ask for a token that allows pulling from the repository."""
        query = {"scope": self.scope or f"repository:{repository}:pull"}
        if self.service:
            query["service"] = self.service
        return f"{self.realm}{'&' if '?' in self.realm else '?'}{urlencode(query)}"


class Token(Struct, frozen=True):
    """A token and when it ends (monotonic seconds)."""

    text: str
    expires: float

    @property
    def valid(self) -> bool:
        return time.monotonic() < self.expires

    def __repr__(self) -> str:
        return "Token(…)"


def wants_basic(header: str | None) -> bool:
    """Whether the challenge is for name and password with each request."""
    return (header or "").strip().partition(" ")[0].lower() == "basic"


def parse_challenge(header: str | None, registry_url: str) -> Challenge:
    """The challenge. Raises AuthError for one that a token cannot answer."""
    scheme, _, rest = (header or "").strip().partition(" ")
    if wants_basic(header):
        raise AuthError("it wants a user name and password")
    if scheme.lower() != "bearer":
        raise AuthError("it refuses anonymous access and names no way to get it")
    found = {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[3] is None else match[3]
        for match in _PARAMETER.finditer(rest[:8192])
    }
    realm = urlsplit(found.get("realm", ""))
    if realm.scheme not in ("http", "https") or not realm.hostname:
        raise AuthError("its token service has no usable address")
    if realm.scheme == "http" and registry_url.startswith("https:"):
        raise AuthError("its token service is not on https as the registry is")
    return Challenge(realm.geturl(), found.get("service"), found.get("scope"))


def parse_token(content: bytes) -> Token:
    """The token in a token service's answer. Raises AuthError."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise AuthError("its token service did not answer in JSON") from None
    fields = document if isinstance(document, dict) else {}
    text = fields.get("token") or fields.get("access_token")
    if not isinstance(text, str) or not text.isascii() or not text.isprintable():
        raise AuthError("its token service answered without a token")
    lifetime = fields.get("expires_in")
    if not isinstance(lifetime, (int, float)) or isinstance(lifetime, bool) or lifetime <= 0:
        lifetime = _DEFAULT_LIFETIME
    return Token(text, time.monotonic() + max(float(lifetime) - _MARGIN, _MARGIN))
