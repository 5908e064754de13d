"""A sandbox's network: policy, ports, names, TLS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from microsandbox.types.secrets import ViolationAction, ViolationPolicy, violation_policy_to_dict


class Action(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class Direction(StrEnum):
    EGRESS = "egress"
    INGRESS = "ingress"
    ANY = "any"


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMPV4 = "icmpv4"
    ICMPV6 = "icmpv6"


class PortProtocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class DestGroup(StrEnum):
    PUBLIC = "public"
    LOOPBACK = "loopback"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class NetworkDestination:
    """``kind`` is any, ip, cidr, domain, domain_suffix or group."""

    kind: str
    value: str | None = None

    def _to_dict(self) -> dict[str, str]:
        values = {"destination_kind": self.kind}
        if self.value is not None:
            values["destination"] = str(self.value)
        return values


#: A destination, or its short form as text.
NetworkDestinationLike = NetworkDestination | str


class Destination:
    """Factories of destinations."""

    @staticmethod
    def any() -> NetworkDestination:
        return NetworkDestination("any")

    @staticmethod
    def ip(ip: str) -> NetworkDestination:
        return NetworkDestination("ip", ip)

    @staticmethod
    def cidr(cidr: str) -> NetworkDestination:
        return NetworkDestination("cidr", cidr)

    @staticmethod
    def domain(domain: str) -> NetworkDestination:
        return NetworkDestination("domain", domain)

    @staticmethod
    def domain_suffix(suffix: str) -> NetworkDestination:
        return NetworkDestination("domain_suffix", suffix)

    @staticmethod
    def group(group: DestGroup | str) -> NetworkDestination:
        return NetworkDestination("group", str(group))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy; the first that matches decides."""

    action: Action
    direction: Direction = Direction.EGRESS
    destination: NetworkDestinationLike | None = None
    protocol: Protocol | None = None
    port: int | str | None = None

    @classmethod
    def allow(
        cls,
        *,
        direction: Direction = Direction.EGRESS,
        protocol: Protocol | None = None,
        port: int | str | None = None,
        destination: NetworkDestinationLike | None = None,
    ) -> Rule:
        return cls(Action.ALLOW, direction, destination, protocol, port)

    @classmethod
    def deny(
        cls,
        *,
        direction: Direction = Direction.EGRESS,
        protocol: Protocol | None = None,
        port: int | str | None = None,
        destination: NetworkDestinationLike | None = None,
    ) -> Rule:
        return cls(Action.DENY, direction, destination, protocol, port)

    @classmethod
    def allow_dns(cls) -> tuple[Rule, Rule]:
        """Name resolution through the sandbox's gateway, over UDP and TCP."""
        host = Destination.group(DestGroup.HOST)
        udp, tcp = (
            cls.allow(protocol=protocol, port=53, destination=host)
            for protocol in (Protocol.UDP, Protocol.TCP)
        )
        return udp, tcp


def _rule_to_dict(rule: Rule) -> dict[str, Any]:
    values: dict[str, Any] = {"action": str(rule.action), "direction": str(rule.direction)}
    if isinstance(rule.destination, NetworkDestination):
        values |= rule.destination._to_dict()
    elif rule.destination is not None:
        values["destination"] = str(rule.destination)
    if rule.protocol is not None:
        values["protocol"] = str(rule.protocol)
    if rule.port is not None:
        values["port"] = str(rule.port)
    return values


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What a guest may reach and who may reach it."""

    default_egress: Action = Action.DENY
    default_ingress: Action = Action.ALLOW
    rules: Sequence[Rule] = ()

    def _to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "default_egress": str(self.default_egress),
            "default_ingress": str(self.default_ingress),
        }
        if self.rules:
            values["rules"] = [_rule_to_dict(rule) for rule in self.rules]
        return values


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Interception of TLS; its presence turns it on. ``block_quic=None`` leaves the default, blocking."""

    bypass: Sequence[str] = ()
    verify_upstream: bool = True
    intercepted_ports: Sequence[int] = (443,)
    block_quic: bool | None = None
    ca_cert: str | None = None
    ca_key: str | None = None
    ca_cn: str | None = None

    def _to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self.bypass:
            values["bypass"] = list(self.bypass)
        if not self.verify_upstream:
            values["verify_upstream"] = False
        if tuple(self.intercepted_ports) != (443,):
            values["intercepted_ports"] = list(self.intercepted_ports)
        for name in ("block_quic", "ca_cert", "ca_key", "ca_cn"):
            if (value := getattr(self, name)) is not None:
                values[name] = value
        return values


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """``nameservers`` are IP, IP:PORT, [v6]:PORT, HOST or HOST:PORT."""

    rebind_protection: bool = True
    nameservers: Sequence[str] = ()
    query_timeout_ms: int | None = None

    def _to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if not self.rebind_protection:
            values["rebind_protection"] = False
        if self.nameservers:
            values["nameservers"] = list(self.nameservers)
        if self.query_timeout_ms is not None:
            values["query_timeout_ms"] = self.query_timeout_ms
        return values


@dataclass(frozen=True, slots=True)
class PortBinding:
    """A port of the guest that the host listens for."""

    host_port: int
    guest_port: int
    bind: str = "127.0.0.1"
    protocol: PortProtocol = PortProtocol.TCP

    @classmethod
    def tcp(cls, host: int, guest: int, *, bind: str = "127.0.0.1") -> PortBinding:
        return cls(host, guest, bind)

    @classmethod
    def udp(cls, host: int, guest: int, *, bind: str = "127.0.0.1") -> PortBinding:
        return cls(host, guest, bind, PortProtocol.UDP)

    def _to_dict(self) -> dict[str, Any]:
        return {
            "host_port": self.host_port,
            "guest_port": self.guest_port,
            "bind": self.bind,
            "protocol": str(self.protocol),
        }


@dataclass(frozen=True, slots=True)
class Network:
    """Everything about a sandbox's network. ``policy`` is a preset's name or a NetworkPolicy."""

    policy: str | NetworkPolicy | None = None
    ports: Mapping[int, int] | Iterable[PortBinding] = field(default_factory=dict)
    deny_domains: Sequence[str] = ()
    deny_domain_suffixes: Sequence[str] = ()
    dns: DnsConfig | None = None
    tls: TlsConfig | None = None
    ipv4_pool: str | None = None
    ipv6_pool: str | None = None
    max_connections: int | None = None
    on_secret_violation: ViolationAction | ViolationPolicy = ViolationAction.BLOCK_AND_LOG
    trust_host_cas: bool | None = None

    @classmethod
    def none(cls) -> Network:
        """Nothing in, nothing out."""
        return cls(policy="none")

    @classmethod
    def public_only(cls) -> Network:
        """Out to public addresses and the gateway's name server."""
        return cls(policy="public_only")

    @classmethod
    def allow_all(cls) -> Network:
        return cls(policy="allow_all")

    def _to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if isinstance(self.policy, NetworkPolicy):
            values["custom_policy"] = self.policy._to_dict()
        elif self.policy is not None:
            values["policy"] = str(self.policy)
        if ports := self._ports():
            values["ports"] = ports
        for name in ("deny_domains", "deny_domain_suffixes"):
            if names := getattr(self, name):
                values[name] = list(names)
        if self.dns is not None and (dns := self.dns._to_dict()):
            values["dns"] = dns
        if self.tls is not None:
            values["tls"] = self.tls._to_dict()
        for name in ("ipv4_pool", "ipv6_pool", "max_connections", "trust_host_cas"):
            if (value := getattr(self, name)) is not None:
                values[name] = value
        violation = violation_policy_to_dict(self.on_secret_violation)
        if violation != ViolationAction.BLOCK_AND_LOG:
            values["on_secret_violation"] = violation
        return values

    def _ports(self) -> dict[int, int] | list[Any]:
        if isinstance(self.ports, Mapping):
            return dict(self.ports)
        return [port._to_dict() if isinstance(port, PortBinding) else port for port in self.ports]
