"""The agent's table of messages says the same as the host's: names, and the flags they demand."""

import re
from pathlib import Path

from microsandbox.agent.protocol import CLIENT_TYPES, GENERATION, MAX_LENGTH, MessageType, flags_of

GUEST = Path(__file__).resolve().parents[3] / "guest"
FLAGS = {"0": 0, "FLAG_TERMINAL": 1, "FLAG_SESSION_START": 2, "FLAG_SHUTDOWN": 4}
ROW = re.compile(r'\[MSG_\w+\] = \{"([a-z.]+)", (\w+), (true|false)\}')


def agent_table():
    return {name: (FLAGS[flags], host == "true") for name, flags, host in ROW.findall(source("message.c"))}


def source(name):
    return (GUEST / name).read_text()


def for_the_relay(kind):
    """What clients and the relay say to each other about the machine; it never comes to the agent."""
    return kind.value.startswith("core.machine.")


def test_both_sides_know_the_same_types_with_the_same_flags():
    agent = {name: flags for name, (flags, _) in agent_table().items()}
    assert agent == {kind.value: int(flags_of(kind)) for kind in MessageType if not for_the_relay(kind)}


def test_the_agent_takes_everything_that_clients_may_send():
    taken = {name for name, (_, from_host) in agent_table().items() if from_host}
    assert {kind.value for kind in CLIENT_TYPES if not for_the_relay(kind)} <= taken


def test_generation_and_frame_limit_agree():
    assert f"GENERATION = {GENERATION}" in source("message.h")
    assert "MAX_LENGTH = 4 << 20" in source("wire.h")
    assert MAX_LENGTH == 4 << 20
