"""What happens to collections while exports fail."""

import asyncio
import time
from itertools import pairwise

import pytest

from microsandbox.exporter.collection import Collection
from microsandbox.exporter.pipeline import Exporter, ExportError, Pipeline
from microsandbox.exporter.program import _export


class Scripted(Exporter):
    """Takes collections, or fails as often as it is told to; ``healths`` is what it was told meanwhile."""

    def __init__(self, failures=0, seconds=0.0):
        self.failures, self.taken, self.healths, self.closed = failures, [], [], False
        self.seconds, self.times = seconds, []

    def export(self, collection, health):
        self.healths.append(health)
        self.times.append(time.monotonic())
        time.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise ExportError("the collector is away")
        self.taken.append(collection.time)

    def close(self):
        self.closed = True


def filled(exporter, count, limit=60, flush_interval=0.1):
    pipeline = Pipeline(exporter, limit, flush_interval)
    for number in range(count):
        pipeline.add(Collection(number, ()))
    return pipeline


@pytest.fixture
def go_on():
    return asyncio.Event()


async def test_each_collection_is_exported_by_itself_in_order(go_on):
    exporter = Scripted()
    pipeline = filled(exporter, 3)
    await pipeline.flush(go_on)
    assert exporter.taken == [0, 1, 2] and len(pipeline) == 0
    assert [health.succeeded for health in exporter.healths] == [0, 1, 2]
    assert abs(exporter.healths[2].last_success - time.time()) < 5


async def test_a_collection_that_failed_is_the_first_of_the_next_flush(go_on):
    exporter = Scripted(failures=1)
    pipeline = filled(exporter, 2)
    await pipeline.flush(go_on)
    assert exporter.taken == [] and len(exporter.healths) == 1, "the others are not tried"
    await pipeline.flush(go_on)
    assert exporter.taken == [0, 1] and pipeline.health.failed == 1


@pytest.mark.parametrize(("failures", "pause"), [(1, 10), (2, 20), (3, 40), (6, 320), (7, 320), (60, 320)])
async def test_pauses_double_five_times(go_on, failures, pause):
    pipeline = filled(Scripted(failures), 1, flush_interval=10)
    assert [await pipeline.flush(go_on) for _ in range(failures)][-1] == pause
    assert await pipeline.flush(go_on) == pytest.approx(10, abs=1), "it has succeeded"


async def test_tries_are_as_far_apart_as_the_warnings_say(go_on, caplog):
    pipeline = filled(exporter := Scripted(failures=3), 1, flush_interval=0.2)
    exporting = asyncio.create_task(_export(pipeline, 0.2, go_on))
    while len(pipeline):
        await asyncio.sleep(0.01)
    go_on.set()
    assert await exporting == 0
    gaps = [later - earlier for earlier, later in pairwise(exporter.times)]
    assert gaps == pytest.approx([0.2, 0.4, 0.8], abs=0.15)
    assert [record.getMessage()[-4:] for record in caplog.records] == ["0.2s", "0.4s", "0.8s"]


async def test_a_slow_failure_is_followed_by_a_whole_pause_and_a_slow_success_by_none(go_on):
    pipeline = filled(Scripted(failures=1, seconds=0.3), 1, flush_interval=0.2)
    assert await pipeline.flush(go_on) == 0.2
    assert await pipeline.flush(go_on) == 0


async def test_the_oldest_are_given_up_and_counted(go_on):
    exporter = Scripted(failures=1)
    pipeline = filled(exporter, 3, limit=2)
    assert pipeline.health.dropped == 1
    await pipeline.flush(go_on)
    pipeline.add(Collection(3, ()))
    await pipeline.finish()
    assert exporter.taken == [2, 3] and pipeline.health.dropped == 2 and exporter.closed


async def test_the_last_flush_waits_for_no_pause_and_its_failure_is_raised(go_on):
    exporter = Scripted(failures=2)
    pipeline = filled(exporter, 1, flush_interval=1000)
    await pipeline.flush(go_on)
    with pytest.raises(ExportError, match="away"):
        await pipeline.finish()
    assert exporter.closed


async def test_a_flush_ends_early_when_the_program_does(go_on):
    exporter = Scripted()
    pipeline = filled(exporter, 2)
    go_on.set()
    await pipeline.flush(go_on)
    assert exporter.taken == []
