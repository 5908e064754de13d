"""What a guest may reach and who may reach it: presets, and policies as callers write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from microsandbox.arguments import check_keys, dict_like, optional, plain_list, required, text, text_list
from microsandbox.network.names import StoredDestination, domain_name, parse_destination

_PORTS = 65536


class PolicyRule(Struct, frozen=True):
    """The first rule that matches decides. No protocols, no ports: any."""

    action: str
    direction: str
    destination: StoredDestination
    protocols: tuple[str, ...] = ()
    ports: tuple[range, ...] = ()


class Policy(Struct, frozen=True):
    default_egress: str
    default_ingress: str
    rules: tuple[PolicyRule, ...] = ()


#: Nothing in, nothing out: what a guest without a network card has anyway.
NOTHING = Policy("deny", "deny")
_ALLOW_DNS = PolicyRule("allow", "egress", {"group": "host"}, ("udp", "tcp"), (range(53, 54),))
_PRESETS = {
    "none": NOTHING,
    "public_only": Policy("deny", "allow", (_ALLOW_DNS, PolicyRule("allow", "egress", {"group": "public"}))),
    "allow_all": Policy("allow", "allow"),
}


def parse_policy(values: Mapping[Any, Any]) -> Policy | None:
    """The policy in a network's mapping; None when it names none. Raises TypeError, ValueError."""
    preset = optional(text, values.get("policy"))
    policy = None if preset is None else _PRESETS.get(preset.replace("-", "_"))
    if preset is not None and policy is None:
        raise ValueError(f"unknown network policy preset: {preset}")
    if values.get("custom_policy") is not None:
        policy = _custom(dict_like(values["custom_policy"]))
    denied = _denials(values, "deny_domains", "domain")
    denied += _denials(values, "deny_domain_suffixes", "domain_suffix")
    if not denied:
        return policy
    base = policy or _PRESETS["allow_all"]
    return Policy(base.default_egress, base.default_ingress, (*denied, *base.rules))


def _custom(values: Mapping[Any, Any]) -> Policy:
    check_keys(values, ("default_egress", "default_ingress", "rules"), "network policy key")
    egress = _choice(values, "default_egress", ("allow", "deny"), "default_egress", "deny")
    ingress = _choice(values, "default_ingress", ("allow", "deny"), "default_ingress", "allow")
    rules = optional(plain_list, values.get("rules")) or []
    return Policy(egress, ingress, tuple(_rule(dict_like(rule)) for rule in rules))


def _rule(values: Mapping[Any, Any]) -> PolicyRule:
    known = ("action", "direction", "destination_kind", "destination", "protocol", "port")
    check_keys(values, known, "network rule key")
    required(values, "action")
    action = _choice(values, "action", ("allow", "deny"), "rule action", "")
    direction = _choice(values, "direction", ("egress", "ingress", "any"), "direction", "egress")
    destination = parse_destination(values)
    protocol = _choice(values, "protocol", ("tcp", "udp", "icmpv4", "icmpv6"), "protocol", "")
    ports = optional(text, values.get("port"))
    return PolicyRule(
        action,
        direction,
        destination,
        (protocol,) if protocol else (),
        () if ports is None else (_port_range(ports),),
    )


def _choice(values: Mapping[Any, Any], key: str, allowed: tuple[str, ...], what: str, standard: str) -> str:
    value = optional(text, values.get(key))
    if value is None:
        return standard
    if value not in allowed:
        raise ValueError(f"unknown {what}: {value}")
    return value


def _port_range(raw: str) -> range:
    """``443`` or ``8000-9000``. A rule whose port is not understood must not become one for all ports."""
    first, separator, last = raw.partition("-")
    numbers = (first, last if separator else first)
    if not all(number.isascii() and number.isdigit() and int(number) < _PORTS for number in numbers):
        raise ValueError(f"invalid port: {raw} (expected a number up to 65535, or a range such as 8000-9000)")
    low, high = (int(number) for number in numbers)
    if low > high:
        raise ValueError(f"invalid port range {low}..{high}; lo must be <= hi")
    return range(low, high + 1)


def _denials(values: Mapping[Any, Any], key: str, kind: str) -> tuple[PolicyRule, ...]:
    rules = []
    for raw in optional(text_list, values.get(key)) or ():
        try:
            rules.append(PolicyRule("deny", "egress", {kind: domain_name(raw)}))
        except ValueError as error:
            raise ValueError(f'{key}["{raw}"]: {error}') from None
    return tuple(rules)
