"""Who pulls from a registry, as config.json says: a name, and a password from the environment."""

from __future__ import annotations

import base64

from msgspec import Struct

from microsandbox import environment
from microsandbox.errors import InvalidConfigError, NotSupportedYetError
from microsandbox.store.config import AuthEntry


class Credentials(Struct, frozen=True):
    """A user name and its password, or a token in its place. Never shown."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(…)"

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        return f"Basic {base64.b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


def credentials_of(host: str, entry: AuthEntry | None) -> Credentials | None:
    """What the entry of a registry stands for now; None without one.

    Raises InvalidConfigError when its variable is unset, NotSupportedYetError for keyring and secret files.
    """
    if entry is None:
        return None
    if entry.password_env is None:
        missing = "store" if entry.store is not None else "secret_name"
        raise NotSupportedYetError(f"{entry.key}.{missing} in config.json (use password_env)")
    password = environment.value(entry.password_env)
    if password is None:
        raise InvalidConfigError(
            f"registry auth for {host}: environment variable `{entry.password_env}` is not set "
            f"({entry.key}.password_env in config.json)"
        )
    return Credentials(entry.username, password)
