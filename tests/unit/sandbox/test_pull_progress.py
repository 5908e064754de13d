"""Following a pull: one stream of events for any number of iterators, and an end that reaches all of them."""

import asyncio

from microsandbox.image.progress import PullEvent
from microsandbox.sandbox.pull_session import PullProgress

EVENTS = [PullEvent("resolving", reference="a"), PullEvent("complete", reference="a", layer_count=1)]


async def test_events_come_in_order_and_end():
    progress = PullProgress()
    for event in EVENTS:
        progress.put(event)
    progress.end()
    assert [event async for event in progress] == EVENTS
    assert [event async for event in progress] == []


async def test_the_end_reaches_every_iterator_that_waits():
    progress = PullProgress()

    async def follow():
        return [event async for event in progress]

    followers = [asyncio.ensure_future(follow()) for _ in range(3)]
    await asyncio.sleep(0)
    for event in EVENTS:
        progress.put(event)
    progress.end()
    found = await asyncio.wait_for(asyncio.gather(*followers), 5)
    assert sorted(event.event_type for events in found for event in events) == ["complete", "resolving"]


async def test_a_reader_that_is_slow_loses_events_and_not_the_end():
    progress = PullProgress()
    for _ in range(2000):
        progress.put(EVENTS[0])
    progress.end()
    assert len([event async for event in progress]) == 1024
