"""The relay of a machine that is paused, over real sockets: what waits, what is refused, what passes."""

import asyncio

import pytest

from microsandbox.agent.protocol import MessageType
from microsandbox.errors import SandboxPausedError
from microsandbox.runtime.gate import WAITING_LIMIT, Passage
from tests.unit.runtime.conftest import settle

M = MessageType


async def test_what_belongs_to_a_running_command_waits_and_passes_in_order(world):
    client = await world.client()
    session = await client.open_session(M.EXEC_REQUEST, {"cmd": "cat"})
    await settle()
    assert [message.kind for message in world.guest.heard()] == [M.EXEC_REQUEST]
    world.relay.hold(Passage.SHUT)
    for number in range(3):
        await session.send_data(M.EXEC_STDIN, b"%d" % number)
    await session.send(M.EXEC_SIGNAL, {"signal": 2})
    await settle()
    assert world.guest.heard() == []
    world.relay.let_pass()
    await settle()
    heard = world.guest.heard()
    assert [message.payload.get("data") for message in heard] == [b"0", b"1", b"2", None]


async def test_a_new_session_is_refused_and_never_comes_to_the_guest(world):
    client = await world.client()
    world.relay.hold(Passage.SHUT)
    session = await client.open_session(M.EXEC_REQUEST, {"cmd": "true"})
    with pytest.raises(SandboxPausedError, match="the sandbox is paused; resume it first"):
        await session.next_message()
    await session.send_data(M.EXEC_STDIN, b"")
    client.close()
    await settle()
    world.relay.let_pass()
    await settle()
    assert world.guest.heard() == [], "of a client that said nothing to it, the guest need not know"


async def test_on_demand_the_first_request_asks_for_the_machine_and_waits(world):
    asked = []
    world.relay.gate.on_demand = lambda: asked.append("wake")
    world.relay.hold(Passage.ON_DEMAND)
    client = await world.client()
    await settle()
    assert asked == [], "to connect is no request"
    await client.open_session(M.FS_REQUEST, {"op": {}})
    await settle()
    assert (asked, world.guest.heard()) == (["wake"], [])
    world.relay.let_pass()
    await settle()
    assert [message.kind for message in world.guest.heard()] == [M.FS_REQUEST]


async def test_a_client_that_says_too_much_is_not_read_and_others_still_get_through(world):
    asked = []
    world.relay.on_machine_request = lambda kind, reply: (asked.append(kind), reply(M.MACHINE_STATE, {}))
    flooding, other = await world.client(), await world.client()
    session = await flooding.open_session(M.EXEC_REQUEST, {"cmd": "cat"})
    await settle()
    world.relay.hold(Passage.SHUT)
    piece, sent = bytes(64 << 10), 0

    async def flood():
        nonlocal sent
        while sent < 16 * WAITING_LIMIT:
            await session.send_data(M.EXEC_STDIN, piece)
            sent += len(piece)

    flooding_task = asyncio.ensure_future(flood())
    await settle()
    assert not flooding_task.done(), "what waits is bounded"
    resuming = await other.open_session(M.MACHINE_RESUME, {})
    answer = await asyncio.wait_for(resuming.next_message(), 5)
    assert (answer.kind, asked) == (M.MACHINE_STATE, [M.MACHINE_RESUME])

    world.relay.let_pass()
    received = 0
    while received < 16 * WAITING_LIMIT:
        await asyncio.sleep(0)
        received += sum(len(message.payload.get("data", b"")) for message in world.guest.heard())
    await asyncio.wait_for(flooding_task, 5)


async def test_what_a_client_had_waiting_goes_with_it(world):
    client = await world.client()
    session = await client.open_session(M.EXEC_REQUEST, {"cmd": "cat"})
    await settle()
    world.guest.heard()
    world.relay.hold(Passage.SHUT)
    await session.send_data(M.EXEC_STDIN, b"lost")
    await settle()
    client.close()
    await settle()
    world.relay.let_pass()
    await settle()
    kinds = [message.kind for message in world.guest.heard()]
    assert kinds == [M.EXEC_SIGNAL, M.CLIENT_DISCONNECTED], "its command is killed"


async def test_requests_about_the_machine_do_not_come_to_the_guest_nor_count_as_sessions(world):
    replies = []
    world.relay.on_machine_request = lambda kind, reply: replies.append(reply)
    client = await world.client()
    session = await client.open_session(M.MACHINE_PAUSE, {})
    await settle()
    assert world.guest.heard() == []
    await asyncio.wait_for(world.relay.drain(), 1)
    client.close()
    await settle()
    replies[0](M.MACHINE_STATE, {"paused": True})
    assert not session.ended, "an answer to a client that has left goes nowhere"


async def test_a_client_has_one_request_about_the_machine_at_a_time(world):
    replies = []
    world.relay.on_machine_request = lambda kind, reply: replies.append(reply)
    patient, hasty = await world.client(), await world.client()
    for client in (patient, hasty, hasty):
        await client.open_session(M.MACHINE_PAUSE, {})
    await asyncio.wait_for(hasty.wait_closed(), 5)
    assert len(replies) == 2
    replies[0](M.MACHINE_STATE, {"paused": True})
    again = await patient.open_session(M.MACHINE_PAUSE, {})
    await settle()
    replies[2](M.MACHINE_STATE, {"paused": True})
    assert (await asyncio.wait_for(again.next_message(), 5)).kind is M.MACHINE_STATE


async def test_the_relay_announces_what_it_answers_itself(world):
    client = await world.client()
    assert client.features == {"machine"}
    client.close()
