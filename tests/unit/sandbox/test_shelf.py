"""Things and takers: first come, first served; nothing is lost on the way."""

import asyncio
from dataclasses import dataclass

import pytest

from microsandbox.sandbox.shelf import Shelf


@dataclass
class Thing:
    name: str
    gone: bool = False


A, B = Thing("a"), Thing("b")


async def waiting(shelf, number):
    takers = [asyncio.ensure_future(shelf.take()) for _ in range(number)]
    await asyncio.sleep(0)
    return takers


async def test_things_come_in_the_order_they_were_put():
    shelf = Shelf()
    shelf.put(A)
    shelf.put(B)
    assert len(shelf) == 2
    assert [await shelf.take(), await shelf.take()] == [A, B]
    assert len(shelf) == 0


async def test_takers_are_served_in_the_order_they_came():
    shelf = Shelf()
    takers = await waiting(shelf, 2)
    shelf.put(A)
    shelf.put(B)
    assert len(shelf) == 0, "each is somebody's already"
    assert await asyncio.gather(*takers) == [A, B]


async def test_a_taker_that_was_cancelled_is_passed_over():
    shelf = Shelf()
    first, second = await waiting(shelf, 2)
    first.cancel()
    await asyncio.wait([first])
    shelf.put(A)
    assert await second is A


@pytest.mark.parametrize("others", [0, 1])
async def test_what_was_given_to_a_taker_that_is_cancelled_then_goes_to_the_next(others):
    shelf = Shelf()
    first, *rest = await waiting(shelf, 1 + others)
    shelf.put(A)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(shelf) == 1 - others
    assert await asyncio.gather(*rest) == [A] * others


async def test_what_is_put_back_comes_first_unless_it_is_gone():
    shelf = Shelf()
    shelf.put(A)
    shelf.put(B)
    shelf.put_back(await shelf.take())
    shelf.put_back(Thing("c", gone=True))
    assert [await shelf.take(), await shelf.take(), len(shelf)] == [A, B, 0]


async def test_a_thing_is_withdrawn_once():
    shelf = Shelf()
    shelf.put(A)
    shelf.put(B)
    shelf.withdraw(A)
    shelf.withdraw(A)
    assert await shelf.take() is B


async def test_a_failure_reaches_all_who_wait_and_nobody_later():
    shelf = Shelf()
    takers = await waiting(shelf, 3)
    takers[1].cancel()
    shelf.fail(ValueError("no"))
    found = await asyncio.gather(*takers, return_exceptions=True)
    assert [type(one) for one in found] == [ValueError, asyncio.CancelledError, ValueError]
    shelf.put(A)
    assert await shelf.take() is A
