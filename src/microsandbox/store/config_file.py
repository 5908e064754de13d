"""The reader of ``config.json``: every key is in one table, and what is not as the table says is an error.

Settings that are ignored in silence are worse than a refusal, so an unknown key, a wrong value and a key
that stands there twice have one kind of answer: the file, the key with its dots, what was expected, what was
found. ``null`` is as if the key were not there.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from msgspec import Struct

from microsandbox.arguments import nearest
from microsandbox.errors import InvalidConfigError, NotSupportedYetError
from microsandbox.store.config import (
    AuthEntry,
    Config,
    DatabaseConfig,
    PathsConfig,
    RegistriesConfig,
    RegistryHost,
    SandboxDefaults,
)
from microsandbox.store.ownership import check_ownership

MAX_BYTES = 1 << 20
_LOG_LEVELS = ("error", "warn", "info", "debug", "trace")
#: Stands in the table, and in the documentation, for the name of any registry.
HOST = "HOST"
_SHOWN_CHARACTERS = 80
#: Where people write passwords, if in the wrong place; what is found there is not shown.
_SECRET = ("registries.hosts", "registries.auth")


class Value(Struct, frozen=True):
    """What a key may have: ``convert`` raises ValueError for anything that is not ``expected``."""

    expected: str
    convert: Callable[[Any], Any]


class NotYet(Struct, frozen=True):
    """A key whose feature this release does not have; ``instead`` is what to use."""

    instead: str = ""


class _Object(tuple[tuple[str, Any], ...]):
    """A JSON object as its pairs, in which a key that stands there twice can be seen."""

    __slots__ = ()


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(value)
    value.encode()  # a lone surrogate is a ValueError, too
    return value


def _path(value: Any) -> Path:
    try:
        path = Path(_text(value)).expanduser()
    except RuntimeError:  # ~NOBODY
        raise ValueError(value) from None
    if not path.is_absolute():
        raise ValueError(value)
    return path


def _program(value: Any) -> str:
    """What can stand in a script's first line as well."""
    text = _text(value)
    if any(character.isspace() for character in text) or text.endswith("/"):
        raise ValueError(value)
    return text


def _number(value: Any, kinds: type | tuple[type, ...]) -> Any:
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(value)  # noqa: TRY004 - one error for all that is not as expected
    return value


def _whole(low: int, high: int) -> Value:
    def convert(value: Any) -> int:
        number: int = _number(value, int)
        if not low <= number <= high:
            raise ValueError(value)
        return number

    return Value(f"a whole number from {low} to {high}", convert)


def _seconds(value: Any) -> float:
    number = _number(value, (int, float))
    if not 0 < number <= _MAX_SECONDS:  # also infinity and NaN; a whole number may be too large for float()
        raise ValueError(value)
    return float(number)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004
    return value


def _one_of(*names: str) -> Value:
    def convert(value: Any) -> str:
        if value not in names:
            raise ValueError(value)
        return str(value)

    return Value(" or ".join(filter(None, (", ".join(names[:-1]), names[-1]))), convert)


_MAX_SECONDS = 86400
TEXT = Value("a text that is not empty", _text)
PATH = Value("an absolute path, or one that begins with ~/", _path)
FLAG = Value("true or false", _flag)
SECONDS = Value(f"a number of seconds above 0, up to {_MAX_SECONDS}", _seconds)
_AUTH = {"username": TEXT, "store": _one_of("keyring"), "password_env": TEXT, "secret_name": TEXT}

#: Every key there is.
SCHEMA: dict[str, Any] = {
    "home": PATH,
    "log_level": _one_of(*_LOG_LEVELS),
    "database": {
        "url": NotYet("the catalogue is below home"),
        "max_connections": _whole(1, 1000),
        "connect_timeout_secs": SECONDS,
        "busy_timeout_secs": SECONDS,
    },
    "paths": {
        "msb": PATH,
        "libkrunfw": NotYet("guests run under QEMU, and MSB_KERNEL chooses their kernel"),
        "cache": PATH,
        "sandboxes": PATH,
        "volumes": NotYet(),
        "snapshots": NotYet(),
        "logs": NotYet("logs are below paths.sandboxes"),
        "secrets": NotYet(),
    },
    "sandbox_defaults": {
        "cpus": _whole(1, 255),
        "memory_mib": _whole(1, 2**32 - 1),
        "oci": {"upper_size_mib": _whole(1, 2**32 - 1)},
        "shell": Value("a program's name or path, without white space", _program),
        "workdir": TEXT,
        "metrics_sample_interval_ms": _whole(0, 2**31 - 1),
        "disable_metrics_sample": FLAG,
    },
    "registries": {
        "insecure": FLAG,
        "ca_certs": PATH,
        "hosts": {HOST: {"insecure": FLAG, "ca_certs": PATH, "auth": _AUTH}},
        "auth": {HOST: _AUTH},
    },
    "metrics": {"capacity": _whole(0, 65536)},
}


def accepted_keys(schema: Mapping[str, Any] = SCHEMA, prefix: str = "") -> Iterator[str]:
    """Every key with its dots, those that are not supported yet included."""
    for key, known in schema.items():
        if isinstance(known, dict):
            yield from accepted_keys(known, f"{prefix}{key}.")
        else:
            yield prefix + key


def load_config(path: Path) -> Config:
    """Read the file; one that does not exist means defaults.

    Raises InvalidConfigError, NotSupportedYetError for a key whose feature is missing.
    """
    content = _read(path)
    return Config() if content is None else _Reader(path).config(content)


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidConfigError(f"{path} is not a regular file")
            check_ownership(path, status)
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise InvalidConfigError(f"{path} is larger than {MAX_BYTES} bytes")
    return content


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # or a pipe in its place waits for a writer


class _Reader:
    """Reads one file; every error has its name."""

    def __init__(self, source: Path) -> None:
        self._source = source

    def config(self, content: bytes) -> Config:
        """Raises InvalidConfigError, NotSupportedYetError."""
        found = self._object(self._parsed(content), SCHEMA, "")
        defaults = found.get("sandbox_defaults", {})
        return Config(
            home=found.get("home"),
            log_level=found.get("log_level"),
            paths=PathsConfig(**found.get("paths", {})),
            sandbox_defaults=SandboxDefaults(**defaults.pop("oci", {}), **defaults),
            registries=self._registries(found.get("registries", {})),
            database=DatabaseConfig(**found.get("database", {})),
            metrics_capacity=found.get("metrics", {}).get("capacity") or Config().metrics_capacity,
        )

    def _parsed(self, content: bytes) -> Any:
        try:
            return json.loads(content.decode(), object_pairs_hook=_Object, parse_constant=_no_json)
        except UnicodeDecodeError as error:
            self._refuse(f"is not UTF-8 (byte {error.start})", error)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            self._refuse(f"is not valid JSON: {error.msg} ({where})", error)
        except RecursionError as error:
            self._refuse("is not valid: it is nested too deeply", error)
        except ValueError as error:
            self._refuse(f"is not valid JSON: {error}", error)

    def _refuse(self, problem: str, cause: Exception) -> NoReturn:
        raise InvalidConfigError(f"{self._source} {problem}") from cause

    def _object(self, value: Any, schema: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """The keys that have a value, converted."""
        if not isinstance(value, _Object):
            raise self._wrong(prefix.rstrip("."), "an object", value)
        found: dict[str, Any] = {}
        seen: set[str] = set()
        for key, item in value:
            name = prefix + key
            if key in seen:
                raise InvalidConfigError(f"{self._source}: {_shown(name)} is there twice; keep one")
            seen.add(key)
            known = schema.get(key, None) if HOST not in schema else schema[HOST]
            if known is None:
                raise InvalidConfigError(
                    f"{self._source}: unknown key {_shown(name)}{_hint(prefix, key, schema)}"
                )
            if item is None:
                continue
            if isinstance(known, dict):
                found[key] = self._object(item, known, f"{name}.")
            elif isinstance(known, NotYet):
                instead = f" ({known.instead})" if known.instead else ""
                raise NotSupportedYetError(f"{self._source}: {name}{instead}")
            else:
                found[key] = self._value(name, known, item)
        return found

    def _value(self, name: str, known: Value, value: Any) -> Any:
        try:
            return known.convert(value)
        except ValueError:
            raise self._wrong(name, known.expected, value) from None

    def _wrong(self, name: str, expected: str, found: Any) -> InvalidConfigError:
        shown = _type(found) if name.startswith(_SECRET) else _described(found)
        return InvalidConfigError(
            f"{self._source}: {_shown(name) or 'the file'} must be {expected}, got {shown}"
        )

    def _registries(self, found: dict[str, Any]) -> RegistriesConfig:
        hosts: dict[str, RegistryHost] = {}
        for host, entry in found.pop("hosts", {}).items():
            key = f"registries.hosts.{host}"
            auth = self._auth(host, f"{key}.auth", entry.pop("auth", None))
            name = self._host_name(key, host)
            if name in hosts:
                raise InvalidConfigError(f"{self._source}: {key}: there are two entries for {name}; keep one")
            hosts[name] = RegistryHost(**entry, auth=auth)
        for host, entry in found.pop("auth", {}).items():
            key = f"registries.auth.{host}"
            name = self._host_name(key, host)
            other = hosts.get(name) or RegistryHost()
            if other.auth is not None:
                raise InvalidConfigError(f"{self._source}: {key}: {other.auth.key} is there, too; keep one")
            auth = self._auth(host, key, entry)
            hosts[name] = RegistryHost(other.insecure, other.ca_certs, auth)
        return RegistriesConfig(**found, hosts=hosts)

    def _host_name(self, key: str, host: str) -> str:
        from microsandbox.image.reference import registry_host

        name = registry_host(host)
        if name is None:
            raise InvalidConfigError(
                f"{self._source}: {_shown(key)}: a registry is named HOST or HOST:PORT, as in references"
            )
        return name

    def _auth(self, host: str, key: str, entry: dict[str, Any] | None) -> AuthEntry | None:
        if entry is None:
            return None
        if "username" not in entry:
            raise InvalidConfigError(f"{self._source}: {_shown(key)}.username is missing")
        sources = len(entry) - 1
        if sources != 1:
            problem = "defines multiple credential sources" if sources else "has no credential source"
            raise InvalidConfigError(
                f"{self._source}: {_shown(key)}: registry auth for {_shown(host)}: entry {problem}; "
                "it must have one of password_env, store, secret_name"
            )
        return AuthEntry(key=key, **entry)


def _hint(prefix: str, key: str, siblings: Mapping[str, Any]) -> str:
    """The key that was meant: one of the same name elsewhere, else one beside it that is spelt alike."""
    for name in accepted_keys():
        if name == key:
            return " (a dot stands for an object within an object)"
        if name.endswith(f".{key}"):
            return f' (did you mean "{name}"?)'
    return nearest((prefix + key)[:_SHOWN_CHARACTERS], [prefix + other for other in siblings])


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _described(value: Any) -> str:
    return _type(value) if isinstance(value, (_Object, list)) else _shown(json.dumps(value))


def _type(value: Any) -> str:
    if isinstance(value, _Object):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return "a text"
    return "true or false" if isinstance(value, bool) else "a number"


def _shown(text: str) -> str:
    """Bounded, and without what would steer a terminal."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_SHOWN_CHARACTERS])
    return f"{shown}…" if len(text) > _SHOWN_CHARACTERS else shown
