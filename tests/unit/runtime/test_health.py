"""When an agent counts as hanging, with threads of this process in the machine's place and a real link."""

import asyncio
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from microsandbox.agent.protocol import MessageType, Refusal, encode
from microsandbox.errors import AgentUnresponsiveError
from microsandbox.runtime import health
from microsandbox.vmm.threads import Threads
from tests.unit.runtime.conftest import settle


class Agent:
    """What the health check sees of relay and link; answers pings while ``answers`` is set."""

    def __init__(self):
        self.asked, self.answers = 0, True
        self.awaited = asyncio.Event()
        self.awaited.set()
        self.awaited_since = self.last_heard = time.monotonic()
        self.on_heard = lambda: None

    def send_message(self, kind, payload=None, *, id=0):
        assert kind is MessageType.PING
        self.asked += 1
        if self.answers:
            self.last_heard = time.monotonic()
            self.on_heard()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(health, "SILENCE", 0.1)
    monkeypatch.setattr(health, "PATIENCE", 0.3)
    monkeypatch.setattr(health, "_STEP", 0.1)


def watch(agent, held_up=lambda _seconds: 0.0, *, running=True, stopped=False):
    event = asyncio.Event()
    if running:
        event.set()
    check = health.Health(agent, agent, event, SimpleNamespace(held_up=held_up, stopped=stopped))
    return asyncio.ensure_future(check.until_hung())


async def hangs_within(seconds, task):
    done, _ = await asyncio.wait((task,), timeout=seconds)
    task.cancel()
    return bool(done)


async def test_an_agent_that_does_not_answer_hangs(quick):
    agent = Agent()
    agent.answers = False
    started = time.monotonic()
    assert await hangs_within(2, watch(agent))
    assert 0.35 < time.monotonic() - started < 1
    assert agent.asked == 1


async def test_one_that_answers_does_not_and_is_asked_again_only_when_it_is_silent(quick):
    agent = Agent()
    assert not await hangs_within(0.75, watch(agent))
    assert 4 <= agent.asked <= 8


@pytest.mark.parametrize("why", ["nobody waits", "the machine is paused"])
async def test_nothing_is_asked_while(quick, why):
    agent = Agent()
    agent.answers = False
    if why == "nobody waits":
        agent.awaited.clear()
    assert not await hangs_within(0.8, watch(agent, running=why == "nobody waits"))
    assert agent.asked == 0


async def test_a_machine_that_is_starved_has_time(quick):
    agent = Agent()
    agent.answers = False
    assert not await hangs_within(1, watch(agent, lambda seconds: seconds))
    started = time.monotonic()
    assert await hangs_within(5, watch(agent, lambda seconds: seconds / 2))
    assert time.monotonic() - started > 0.6, "half the time counts"


async def test_what_a_guest_can_bring_about_gains_it_no_more_than_so_much_time(quick, monkeypatch):
    monkeypatch.setattr(health, "MOST_PATIENCE", 0.6)
    agent = Agent()
    agent.answers = False
    started = time.monotonic()
    assert await hangs_within(3, watch(agent, lambda seconds: seconds))
    assert 0.5 < time.monotonic() - started < 2
    assert not await hangs_within(1.5, watch(agent, lambda seconds: seconds, stopped=True))


@pytest.mark.parametrize(
    ("states", "held_up", "stopped"), [("SS", 0, False), ("SD", 1, False), ("Tt", 1, True), ("DT", 1, True)]
)
def test_threads_that_wait_for_a_device_were_not_stopped(tmp_path, states, held_up, stopped):
    for number, state in enumerate(states):
        task = tmp_path / "7/task" / str(number)
        task.mkdir(parents=True)
        (task / "schedstat").write_text("0 0 0\n")
        (task / "stat").write_text(f"{number} (CPU 0/TCG) {state} 1 1\n")
    threads = Threads(7, tmp_path)
    assert (threads.held_up(1), threads.stopped) == (held_up, stopped)


async def test_time_in_which_this_process_did_not_run_does_not_count(quick):
    agent = Agent()
    agent.answers = False
    task = watch(agent)
    await asyncio.sleep(0.15)
    time.sleep(1)
    await asyncio.sleep(0)
    assert not task.done()
    assert await hangs_within(1, task)


@pytest.fixture
def spinner():
    process = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    yield process.pid
    process.kill()
    process.wait()


def test_threads_that_sleep_or_have_ended_are_held_up_by_nobody():
    process = subprocess.Popen(["sleep", "1000"])
    try:
        threads = Threads(process.pid)
        time.sleep(0.2)
        assert threads.held_up(0.2) < 0.1
    finally:
        process.kill()
        process.wait()
    assert threads.held_up(1) == 0


def test_a_thread_that_is_stopped_is_held_up(spinner):
    threads = Threads(spinner)
    os.kill(spinner, signal.SIGSTOP)
    os.waitid(os.P_PID, spinner, os.WSTOPPED | os.WNOWAIT)
    assert threads.held_up(0.5) == 0.5
    assert threads.stopped


def test_threads_that_share_one_processor_wait_for_each_other(spinner):
    cpu = min(os.sched_getaffinity(0))
    others = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(3)]
    try:
        for pid in (spinner, *(other.pid for other in others)):
            os.sched_setaffinity(pid, {cpu})
        threads = Threads(spinner)
        time.sleep(1)
        assert 0.4 < threads.held_up(1) <= 1
    finally:
        for other in others:
            other.kill()
            other.wait()


async def test_everybody_who_waits_is_told_and_nobody_else(world):
    client, bystander = await world.client(), await world.client()
    sessions = [await client.open_session(MessageType.EXEC_REQUEST, {"cmd": "x"}) for _ in range(2)]
    await settle()
    world.relay.give_up(Refusal.UNRESPONSIVE, "it hangs")
    for session in sessions:
        with pytest.raises(AgentUnresponsiveError, match="agent client error: it hangs"):
            await session.next_message()
        assert session.ended
    bystander.check_open(0)


async def test_somebody_waits_from_the_first_request_to_the_last_answer(world):
    relay = world.relay
    assert not relay.awaited.is_set()
    client = await world.client()
    assert not relay.awaited.is_set(), "to connect is no request"
    first = await client.open_session(MessageType.EXEC_REQUEST, {"cmd": "x"})
    second = await client.open_session(MessageType.EXEC_REQUEST, {"cmd": "x"})
    await settle()
    world.guest.end(first.id)
    await settle()
    assert relay.awaited.is_set()
    world.guest.end(second.id)
    await settle()
    assert not relay.awaited.is_set()
    third = await client.open_session(MessageType.EXEC_REQUEST, {"cmd": "x"})
    await settle()
    world.guest.sock.sendall(encode(third.id, MessageType.EXEC_STARTED, {"pid": 2}).raw)
    await settle()
    client.close()
    await settle()
    assert not relay.awaited.is_set(), "who has left waits no longer"


def health_of(world):
    """The health check of the world's relay, whose machine runs."""
    running = asyncio.Event()
    running.set()
    threads = SimpleNamespace(held_up=lambda _seconds: 0.0, stopped=False)
    return asyncio.ensure_future(health.Health(world.relay, world.link, running, threads).until_hung())


async def visit(world, seconds):
    """A client that asks for something and leaves before its answer."""
    client = await world.client()
    await client.open_session(MessageType.EXEC_REQUEST, {"cmd": "x"})
    await asyncio.sleep(seconds)
    client.close()
    await settle()


async def test_an_agent_that_hangs_is_found_out_by_clients_none_of_which_waits_for_long(world, quick):
    task = health_of(world)
    for _ in range(20):
        await visit(world, health.SILENCE * 0.8)
    assert await hangs_within(0, task)


async def test_an_agent_whose_client_has_left_is_asked_once(world, quick):
    task = health_of(world)
    await visit(world, 0.01)
    pings = 0
    for _ in range(50):
        await asyncio.sleep(0.01)
        for message in world.guest.heard():
            if message.kind is MessageType.PING:
                pings += 1
                world.guest.sock.sendall(encode(0, MessageType.PONG, {}).raw)
    assert pings == 1
    assert not world.relay.awaited.is_set()
    assert not await hangs_within(0, task)


async def test_an_answer_to_the_question_is_nobodys_activity(world):
    heard = []
    world.relay.on_heard = lambda: heard.append(True)
    before = world.relay.last_activity
    world.guest.sock.sendall(encode(0, MessageType.PONG, {}).raw)
    await settle()
    assert heard == [True]
    assert world.relay.last_heard > before == world.relay.last_activity
