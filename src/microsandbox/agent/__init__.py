"""The guest agent's protocol and its clients. The raw client is public API."""

from microsandbox.agent.client import (
    FLAG_SESSION_START,
    FLAG_SHUTDOWN,
    FLAG_TERMINAL,
    AgentClient,
    AgentStream,
    RawFrame,
)

__all__ = ["FLAG_SESSION_START", "FLAG_SHUTDOWN", "FLAG_TERMINAL", "AgentClient", "AgentStream", "RawFrame"]
