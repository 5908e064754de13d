"""The first signal ends in good order, the second does not wait."""

import asyncio
import signal

import pytest

from microsandbox.cli.interrupts import Interrupted, Signals


async def test_work_that_is_not_interrupted_has_its_result():
    async def work():
        await asyncio.sleep(0)
        return 7

    assert await Signals().guard(work()) == 7


async def test_the_first_signal_cancels_work_and_waits_for_its_cleaning_up():
    signals, events = Signals(), []

    async def work():
        try:
            signals.take(signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    with pytest.raises(Interrupted) as raised:
        await signals.guard(work())
    assert (raised.value.exit_code, events) == (143, ["cleaned up"])


async def test_work_that_fails_while_it_is_interrupted_says_why():
    signals = Signals()

    async def work():
        try:
            signals.take(signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        await signals.guard(work())


@pytest.mark.parametrize("seconds", [False, True])
async def test_only_the_second_signal_forces_an_end(seconds):
    signals, ended, forced = Signals(), asyncio.Event(), []
    signals.take(signal.SIGINT)

    async def gentle():
        if seconds:
            signals.take(signal.SIGINT)
            await ended.wait()

    async def force():
        forced.append(True)
        ended.set()

    await signals.hurry(gentle(), force)
    assert forced == [True] * seconds


async def test_a_gentle_end_that_fails_is_said():
    async def gentle():
        raise OSError("stuck")

    async def force():
        raise AssertionError("nobody asked")

    with pytest.raises(OSError, match="stuck"):
        await Signals().hurry(gentle(), force)
