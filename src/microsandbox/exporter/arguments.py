"""The command line of ``msb-metrics``, checked, as one value.

Options may stand before or after the mode. One that the mode has no use for is refused: whoever gives it
expects something of it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from microsandbox.units import parse_duration

T = TypeVar("T")
LOG_LEVELS = ("error", "warn", "info", "debug", "trace")
_MOST_BUFFERED = 100_000
#: What gRPC takes as the key of metadata; HTTP takes these as well.
_HEADER_KEY = re.compile(r"[0-9a-z_.-]{1,256}")


class Mode(StrEnum):
    """Where measurements go."""

    STDOUT = "stdout"
    OTEL = "otel"
    PROMETHEUS = "prometheus"


class ArgumentsError(Exception):
    """The command line is wrong; the text says what about it."""


class Delivery(Struct, frozen=True):
    """When collections are made and sent on. Times in seconds."""

    collect_interval: float
    flush_interval: float
    max_buffered: int
    export_timeout: float


class OtelSettings(Struct, frozen=True):
    """Where OTLP goes to, and what is said there beyond the values."""

    endpoint: str
    http: bool
    gzip: bool
    ca_cert: Path | None
    headers: tuple[tuple[str, str], ...]
    resource: tuple[tuple[str, str], ...]
    run_id: bool
    pid: bool


class Settings(Struct, frozen=True):
    """All that the command line says. ``max_sample_age`` is in seconds, 0 for any age."""

    mode: Mode
    log_level: str
    log_format: str
    home: Path | None
    labels: bool
    excluded_labels: frozenset[str]
    max_sample_age: float
    delivery: Delivery
    otel: OtelSettings | None
    listen: tuple[str, int]


def parse(words: Sequence[str]) -> Settings:
    """Raises ArgumentsError; SystemExit after ``--help`` and ``--version``."""
    found = _parser().parse_intermixed_args(words)
    mode = Mode(found.mode)
    _refuse_foreign_options(found, mode)
    return Settings(
        mode,
        found.log_level,
        found.log_format,
        found.msb_home,
        not found.no_labels,
        frozenset(found.exclude_label_key or ()),
        found.max_sample_age,
        Delivery(
            _above_zero("collect_interval", _or(found.collect_interval, 1.0)),
            _above_zero("flush_interval", _or(found.flush_interval, 10.0)),
            _above_zero("max_buffered_collections", _or(found.max_buffered, 60)),
            _above_zero("export_timeout", _or(found.export_timeout, 30.0)),
        ),
        _otel(found) if mode is Mode.OTEL else None,
        _or(found.listen, ("127.0.0.1", 9464)),
    )


_EXPORTING = (Mode.STDOUT, Mode.OTEL)
#: Options that not every mode has, by where they are in the result; none of them has a default there.
_MODES: dict[str, tuple[Mode, ...]] = {
    **dict.fromkeys(("collect_interval", "flush_interval", "max_buffered", "export_timeout"), _EXPORTING),
    **dict.fromkeys(("endpoint", "protocol", "compression", "ca_cert", "header", "resource"), (Mode.OTEL,)),
    **dict.fromkeys(("emit_run_id", "emit_pid"), (Mode.OTEL,)),
    "listen": (Mode.PROMETHEUS,),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentsError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    from microsandbox.version import VERSION

    parser = _Parser(
        prog="msb-metrics",
        description="Send what running sandboxes use to a monitoring system.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "mode",
        choices=[mode.value for mode in Mode],
        help="print lines, send OTLP to a collector, or be scraped by Prometheus",
    )
    parser.add_argument("-V", "--version", action="version", version=f"msb-metrics {VERSION}")
    add = parser.add_argument
    add("--log-level", choices=LOG_LEVELS, default="info", help="default: info; RUST_LOG overrides it")
    add("--log-format", choices=("text", "json"), default="text", help="default: text")
    add("--msb-home", type=Path, metavar="DIR", help="default: $MSB_HOME, else ~/.microsandbox")
    add("--max-sample-age", type=_duration, default=30.0, metavar="TIME",
        help="leave out sandboxes whose latest sample is older; 0: never (default: 30s)")  # fmt: skip
    add("--no-labels", action="store_true", help="do not read the catalogue")
    add("--exclude-label-key", action="append", metavar="KEY", help="a label to leave out (repeatable)")
    _add_delivery(parser.add_argument_group("stdout and otel"))
    _add_otel(parser.add_argument_group("otel"))
    parser.add_argument_group("prometheus").add_argument(
        "--listen", type=_address, metavar="HOST:PORT", help="default: 127.0.0.1:9464; port 0: any"
    )
    return parser


def _add_delivery(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--collect-interval", type=_duration, metavar="TIME", help="between collections (default: 1s)")
    add("--flush-interval", type=_duration, metavar="TIME", help="between exports (default: 10s)")
    add("--max-buffered", type=_count, metavar="N",
        help="collections kept while they cannot be exported, the newest ones (default: 60)")  # fmt: skip
    add("--export-timeout", type=_duration, metavar="TIME", help="for each export (default: 30s)")


def _add_otel(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--endpoint", type=_endpoint, metavar="URL", help="the collector, http:// or https:// (required)")
    add("--protocol", choices=("grpc", "http"), help="http is binary protobuf (default: grpc)")
    add("--compression", choices=("none", "gzip"), help="gzip needs grpc (default: none)")
    add("--ca-cert", type=Path, metavar="FILE", help="trusted beside the public ones (PEM); needs grpc")
    add("--header", type=_header, action="append", metavar="K=V", help="sent along (repeatable)")
    add("--resource", type=_pair, action="append", metavar="K=V",
        help="a resource attribute; overrides the defaults (repeatable)")  # fmt: skip
    add("--emit-run-id", action="store_true", default=None, help="attribute sandbox.run_id")
    add("--emit-pid", action="store_true", default=None, help="attribute sandbox.pid")


def _refuse_foreign_options(found: argparse.Namespace, mode: Mode) -> None:
    for name, modes in _MODES.items():
        if getattr(found, name) is not None and mode not in modes:
            option = "--" + name.replace("_", "-")
            raise ArgumentsError(f"{option} is an option of {' and '.join(modes)}, not of {mode}")


def _otel(found: argparse.Namespace) -> OtelSettings:
    if found.endpoint is None:
        raise ArgumentsError("otel needs --endpoint URL, the address of an OTLP collector")
    http = found.protocol == "http"
    gzip = found.compression == "gzip"
    if http and gzip:
        raise ArgumentsError("--compression gzip cannot be used with --protocol http; use --protocol grpc")
    if http and found.ca_cert is not None:
        raise ArgumentsError("--ca-cert cannot be used with --protocol http; use --protocol grpc")
    if found.ca_cert is not None and urlsplit(found.endpoint).scheme != "https":
        raise ArgumentsError("--ca-cert needs an https:// endpoint: http:// is not encrypted")
    return OtelSettings(
        found.endpoint,
        http,
        gzip,
        found.ca_cert,
        tuple(found.header or ()),
        tuple(found.resource or ()),
        bool(found.emit_run_id),
        bool(found.emit_pid),
    )


# values


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _above_zero(name: str, value: T) -> T:
    if not value:
        raise ArgumentsError(f"metrics {name} must be greater than zero")
    return value


def _explained(convert: Callable[[str], T]) -> Callable[[str], T]:
    """argparse shows the texts of its own kind of error only."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return converted


@_explained
def _duration(text: str) -> float:
    return parse_duration(text)


@_explained
def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) > _MOST_BUFFERED:
        raise ValueError(f'invalid number "{text}" (expected 1 to {_MOST_BUFFERED})')
    return int(text)


def _split_pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f'expected KEY=VALUE, got "{text}"')
    return key, value


@_explained
def _pair(text: str) -> tuple[str, str]:
    return _split_pair(text)


@_explained
def _header(text: str) -> tuple[str, str]:
    if "=" not in text:
        raise ValueError("expected KEY=VALUE")  # what was given may be a secret
    key, value = _split_pair(text)
    check_header(key := key.lower(), value)
    return key, value


def check_header(key: str, value: str) -> None:
    """Raises ValueError, without the value."""
    if not _HEADER_KEY.fullmatch(key) or key.endswith("-bin"):
        raise ValueError(f'"{key}" cannot be the name of a header')
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"the value of {key} has characters that a header cannot have")


@_explained
def _endpoint(text: str) -> str:
    url: Any = None
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f'invalid endpoint "{text}" (expected e.g. http://127.0.0.1:4317)')
    if "@" in url.netloc:
        raise ValueError("an endpoint has no user and password; --header authorization=... has")
    return text


@_explained
def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ValueError(f'invalid address "{text}" (expected HOST:PORT, e.g. 127.0.0.1:9464)')
    return host.removeprefix("[").removesuffix("]"), int(port)
