"""``network=``, ``ports=``, ``secrets=`` and ``on_secret_violation=`` of a new sandbox.

All of it is checked; what asks for more than "no network" is refused, because this release has no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import AddressValueError, IPv4Network, IPv6Network, NetmaskValueError, ip_address
from typing import Any

from microsandbox.arguments import (
    check_keys,
    dict_like,
    flag,
    optional,
    plain_list,
    required,
    text,
    text_list,
    whole,
)
from microsandbox.errors import NotSupportedYetError
from microsandbox.network.policy import NOTHING, parse_policy

_KEYS = (
    "policy", "custom_policy", "deny_domains", "deny_domain_suffixes", "dns", "max_connections", "ipv4_pool",
    "ipv6_pool", "trust_host_cas", "on_secret_violation", "tls", "ports",
)  # fmt: skip
_BLOCKING = ("block", "block-and-log", "block-and-terminate")
_NAMESERVER = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]\s/@]+)(:(?P<port>\d{1,5}))?")


def network(value: object) -> None:
    """Accepts nothing, and a policy of nothing. Raises NotSupportedYetError for the rest."""
    values = dict_like(value)
    check_keys(values, _KEYS, "network key")
    asked = {"network policy": parse_policy(values) not in (None, NOTHING)}
    asked["dns"] = _dns(values.get("dns"))
    asked["max_connections"] = optional(_whole64, values.get("max_connections")) is not None
    asked["address pools"] = _pools(values)
    asked["trust_host_cas"] = bool(optional(flag, values.get("trust_host_cas")))
    asked["secrets"] = _violation_asks(values.get("on_secret_violation"))
    asked["tls"] = _tls(values.get("tls"))
    asked["ports"] = _ports(values.get("ports"))
    _refuse(asked)


def ports(value: object) -> None:
    _refuse({"ports": _ports(value)})


def secrets(value: object) -> None:
    entries = plain_list(value)
    for entry in entries:
        _secret(dict_like(entry))
    _refuse({"secrets": bool(entries)})


def on_secret_violation(value: object) -> None:
    _refuse({"secrets": _violation_asks(value)})


def _refuse(asked: Mapping[str, bool]) -> None:
    for feature, wanted in asked.items():
        if wanted:
            raise NotSupportedYetError(feature)


def _whole64(value: object) -> int:
    return whole(value, 64)


def _ports(value: Any) -> bool:
    """Checks published ports; whether there are any."""
    if value is None:
        return False
    if isinstance(value, Mapping):
        for host, guest in value.items():
            whole(host, 16)
            whole(guest, 16)
        return bool(value)
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(
            "ports must be a mapping of host_port to guest_port or a sequence of PortBinding values"
        )
    bindings = list(value)
    for binding in bindings:
        _port_binding(dict_like(binding))
    return bool(bindings)


def _port_binding(values: Mapping[Any, Any]) -> None:
    check_keys(values, ("host_port", "guest_port", "bind", "protocol"), "port key")
    for key in ("host_port", "guest_port"):
        if key not in values:
            raise ValueError(f"{key} is required")
        whole(values[key], 16)
    bind = optional(text, values.get("bind"))
    if bind is not None and not _is_address(bind):
        raise ValueError(f"invalid bind address: {bind}")
    protocol = optional(text, values.get("protocol"))
    if protocol not in (None, "tcp", "udp"):
        raise ValueError(f"invalid port protocol: {protocol}")


def _is_address(raw: str) -> bool:
    try:
        ip_address(raw)
    except ValueError:
        return False
    return True


def _dns(value: object) -> bool:
    if value is None:
        return False
    values = dict_like(value)
    check_keys(values, ("rebind_protection", "nameservers", "query_timeout_ms"), "dns key")
    optional(flag, values.get("rebind_protection"))
    for raw in optional(text_list, values.get("nameservers")) or ():
        match = _NAMESERVER.fullmatch(raw.strip())
        if not _is_address(raw.strip()) and (match is None or int(match["port"] or 53) > 65535):
            raise ValueError(f'invalid nameserver "{raw}"; expected IP, IP:PORT, HOST, or HOST:PORT')
    optional(_whole64, values.get("query_timeout_ms"))
    return bool(values)


def _pools(values: Mapping[Any, Any]) -> bool:
    given = False
    for key, kind in (("ipv4_pool", IPv4Network), ("ipv6_pool", IPv6Network)):
        raw = optional(text, values.get(key))
        if raw is None:
            continue
        given = True
        try:
            kind(raw, strict=False)
        except (AddressValueError, NetmaskValueError, ValueError) as error:
            raise ValueError(f'invalid {key} "{raw}": {error}') from None
    return given


def _tls(value: object) -> bool:
    """Interception is on as soon as there is a mapping, an empty one too."""
    if value is None:
        return False
    values = dict_like(value)
    known = ("bypass", "verify_upstream", "intercepted_ports", "block_quic", "ca_cert", "ca_key", "ca_cn")
    check_keys(values, known, "tls key")
    optional(text_list, values.get("bypass"))
    for port in values.get("intercepted_ports") or ():
        whole(port, 16)
    for key in ("verify_upstream", "block_quic"):
        optional(flag, values.get(key))
    for key in ("ca_cert", "ca_key", "ca_cn"):
        optional(text, values.get(key))
    return True


def _secret(values: Mapping[Any, Any]) -> None:
    known = (
        "env_var", "value", "allow_hosts", "allow_host_patterns", "placeholder", "require_tls",
        "on_violation", "injection",
    )  # fmt: skip
    check_keys(values, known, "secret key")
    for key in ("env_var", "value"):
        required(values, key)
    hosts = [optional(text_list, values.get(key)) for key in ("allow_hosts", "allow_host_patterns")]
    optional(text, values.get("placeholder"))
    optional(flag, values.get("require_tls"))
    _violation_asks(values.get("on_violation"))
    if "injection" in values:
        injection = dict_like(values["injection"])
        check_keys(injection, ("headers", "basic_auth", "query_params", "body"), "injection key")
        for value in injection.values():
            flag(value)
    if not any(hosts):
        raise ValueError("SecretEntry requires at least one allowed host or allowed host pattern")


def _violation_asks(value: Any) -> bool:
    """Checks a violation action; whether it is another one than the default."""
    if convert := getattr(value, "_to_dict", None):
        value = convert()
    if value is None:
        return False
    if isinstance(value, str):
        action = text(value)
        if action.replace("_", "-") not in (*_BLOCKING, "passthrough"):
            raise ValueError(f"unknown violation action: {action}")
        return action.replace("_", "-") != "block-and-log"
    values = dict_like(value)
    if set(values) != {"passthrough"}:
        raise ValueError("expected violation action string or {'passthrough': {...}}")
    hosts = dict_like(values["passthrough"])
    check_keys(hosts, ("hosts", "host_patterns", "all_hosts", "fallback"), "passthrough key")
    optional(text_list, hosts.get("hosts"))
    optional(text_list, hosts.get("host_patterns"))
    optional(flag, hosts.get("all_hosts"))
    fallback = optional(text, hosts.get("fallback"))
    if fallback is not None and fallback.replace("_", "-") not in _BLOCKING:
        raise ValueError("passthrough fallback must be a blocking action")
    return True
