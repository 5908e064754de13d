"""Secrets that the guest never sees: it gets placeholders, the host puts the value into requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ViolationAction(StrEnum):
    """What happens when a placeholder is on its way to a host that may not have the secret."""

    BLOCK = "block"
    BLOCK_AND_LOG = "block-and-log"
    BLOCK_AND_TERMINATE = "block-and-terminate"
    PASSTHROUGH = "passthrough"


@dataclass(frozen=True, slots=True)
class ViolationPolicy:
    """An action with exceptions: hosts that get the placeholder unchanged."""

    fallback: ViolationAction = ViolationAction.BLOCK_AND_LOG
    passthrough_hosts: Sequence[str] = ()
    passthrough_host_patterns: Sequence[str] = ()
    passthrough_all_hosts: bool = False

    @classmethod
    def block(cls) -> ViolationPolicy:
        return cls(ViolationAction.BLOCK)

    @classmethod
    def block_and_log(cls) -> ViolationPolicy:
        return cls(ViolationAction.BLOCK_AND_LOG)

    @classmethod
    def block_and_terminate(cls) -> ViolationPolicy:
        return cls(ViolationAction.BLOCK_AND_TERMINATE)

    @classmethod
    def passthrough(
        cls, *, hosts: Sequence[str] = (), host_patterns: Sequence[str] = (), all_hosts: bool = False
    ) -> ViolationPolicy:
        return cls(
            passthrough_hosts=hosts, passthrough_host_patterns=host_patterns, passthrough_all_hosts=all_hosts
        )

    def _to_dict(self) -> str | dict[str, Any]:
        values: dict[str, Any] = {}
        if self.passthrough_hosts:
            values["hosts"] = list(self.passthrough_hosts)
        if self.passthrough_host_patterns:
            values["host_patterns"] = list(self.passthrough_host_patterns)
        if self.passthrough_all_hosts:
            values["all_hosts"] = True
        return {"passthrough": values} if values else str(self.fallback)


def violation_policy_to_dict(policy: ViolationPolicy | ViolationAction | str) -> str | dict[str, Any]:
    """The text or mapping that stands for an action or a policy."""
    return policy._to_dict() if isinstance(policy, ViolationPolicy) else str(policy)


@dataclass(frozen=True, slots=True)
class SecretInjection:
    """Where in a request a placeholder is replaced."""

    headers: bool = True
    basic_auth: bool = True
    query_params: bool = False
    body: bool = False

    def _to_dict(self) -> dict[str, bool]:
        standard = SecretInjection()
        names = ("headers", "basic_auth", "query_params", "body")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(standard, name)}


@dataclass(frozen=True, slots=True)
class SecretEntry:
    """One secret; make it with ``Secret.env``."""

    env_var: str
    value: str = field(repr=False)
    allow_hosts: Sequence[str] = ()
    allow_host_patterns: Sequence[str] = ()
    placeholder: str | None = None
    require_tls: bool = True
    on_violation: ViolationAction | ViolationPolicy = ViolationAction.BLOCK_AND_LOG
    injection: SecretInjection = SecretInjection()

    def _to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"env_var": self.env_var, "value": self.value}
        if self.allow_hosts:
            values["allow_hosts"] = list(self.allow_hosts)
        if self.allow_host_patterns:
            values["allow_host_patterns"] = list(self.allow_host_patterns)
        if self.placeholder is not None:
            values["placeholder"] = self.placeholder
        if not self.require_tls:
            values["require_tls"] = False
        if (violation := violation_policy_to_dict(self.on_violation)) != ViolationAction.BLOCK_AND_LOG:
            values["on_violation"] = violation
        if injection := self.injection._to_dict():
            values["injection"] = injection
        return values


class Secret:
    @staticmethod
    def env(
        env_var: str,
        *,
        value: str,
        allow_hosts: Sequence[str] = (),
        allow_host_patterns: Sequence[str] = (),
        placeholder: str | None = None,
        require_tls: bool = True,
        on_violation: ViolationAction | ViolationPolicy = ViolationAction.BLOCK_AND_LOG,
        injection: SecretInjection | None = None,
    ) -> SecretEntry:
        """A secret whose placeholder the guest has in an environment variable."""
        return SecretEntry(
            env_var,
            value,
            tuple(allow_hosts),
            tuple(allow_host_patterns),
            placeholder,
            require_tls,
            on_violation,
            injection or SecretInjection(),
        )
