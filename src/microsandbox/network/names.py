"""Domain names, addresses and destinations as rules spell them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from microsandbox.arguments import text

#: How a destination is stored: ``"any"``, or one of cidr, domain, domain_suffix, group with its value.
StoredDestination = str | dict[str, str]

GROUPS = ("public", "loopback", "private", "link_local", "metadata", "multicast", "host")
_LABEL = re.compile(r"[*a-z0-9_][a-z0-9_-]{0,62}", re.IGNORECASE)
_MAX_NAME = 255


def domain_name(raw: str) -> str:
    """The name as it is compared: lower case, no dots around it, ASCII. Raises ValueError."""
    name = raw.lstrip(".").rstrip(".")
    if not name:
        raise ValueError("domain name is empty")
    try:
        encoded = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"invalid domain name: {error}") from None
    if len(encoded) > _MAX_NAME:
        raise ValueError(f"invalid domain name: longer than {_MAX_NAME} bytes")
    for label in encoded.split("."):
        if not _LABEL.fullmatch(label):
            raise ValueError(f"invalid domain name: bad label {label!r}")
    return encoded.lower()


def cidr(raw: str) -> str:
    """An address block with its host bits cleared. Raises ValueError."""
    if raw.count("/") > 1:
        raise ValueError(f"invalid cidr format: CIDR must contain a single '/': {raw}")
    return str(ip_network(raw, strict=False))


def parse_destination(values: Mapping[Any, Any]) -> StoredDestination:
    """The destination of a rule: typed by ``destination_kind``, or the short form. Raises ValueError."""
    kind, value = values.get("destination_kind"), values.get("destination")
    if kind is None:
        return "any" if value is None else _short_form(text(value))
    kind = text(kind).replace("-", "_")
    if kind not in ("any", "ip", "cidr", "domain", "domain_suffix", "group"):
        raise ValueError(f"unknown destination kind: {values['destination_kind']}")
    if kind == "any":
        return "any"
    if value is None:
        raise ValueError(f"destination is required for destination kind `{values['destination_kind']}`")
    return _typed(kind, text(value))


def _typed(kind: str, raw: str) -> StoredDestination:
    if kind == "group":
        group = raw.replace("-", "_")
        if group not in GROUPS:
            raise ValueError(f"unknown destination group: {raw}")
        return {"group": group}
    wanted = {
        "ip": "IP address", "cidr": "CIDR", "domain": "domain", "domain_suffix": "domain suffix"
    }[kind]  # fmt: skip
    try:
        if kind == "ip":
            return {"cidr": str(ip_network(ip_address(raw)))}
        return {kind: cidr(raw) if kind == "cidr" else domain_name(raw)}
    except ValueError as error:
        raise ValueError(f'invalid {wanted} "{raw}": {error}') from None


def _short_form(raw: str) -> StoredDestination:
    if raw == "*":
        return "any"
    if raw.startswith("domain="):
        return _typed("domain", raw.removeprefix("domain="))
    if raw.startswith("suffix="):
        return _typed("domain_suffix", raw.removeprefix("suffix="))
    if raw.replace("-", "_") in GROUPS:
        return _typed("group", raw)
    if raw.startswith((".", "*.")):
        return _typed("domain_suffix", raw.removeprefix("*"))
    if "/" in raw:
        return _typed("cidr", raw)
    try:
        return {"cidr": str(ip_network(ip_address(raw)))}
    except ValueError:
        return _typed("domain", raw)
