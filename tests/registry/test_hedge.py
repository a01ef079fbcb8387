from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BlobNotFound, RegistryTimeout
from gateway.registry.hedge import Hedge
from gateway.registry.retry import RetryBudget
from tests.support import faultregistry as faults
from tests.support.faketime import FakeTime


def taught(budget: RetryBudget | None = None) -> Hedge:
    """A hedge that knows requests to take no time at all."""
    hedge = Hedge(budget or RetryBudget())
    hedge._durations.extend([0.0] * 20)
    return hedge


def script(*steps):
    """An operation whose runs wait for ever (None), return, or raise, in turn; and how many have begun and ended."""
    seen = {"begun": 0, "cancelled": 0}

    async def operation():
        step = steps[seen["begun"]]
        seen["begun"] += 1
        if seen["begun"] == len(steps):
            all_begun.set()
        try:
            if step is None:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen["cancelled"] += 1
            raise
        if isinstance(step, Exception):
            raise step
        return step

    all_begun = asyncio.Event()
    operation.all_begun = all_begun
    return operation, seen


@given(st.lists(st.floats(0, 100), min_size=20, max_size=200))
def test_patience_is_the_95th_percentile_of_what_was_seen(durations):
    hedge = Hedge(RetryBudget())
    hedge._durations.extend(durations)
    patience = hedge.after_seconds()
    assert sum(item <= patience for item in durations) >= 0.95 * len(durations)
    assert sum(item < patience for item in durations) < 0.95 * len(durations)


async def test_nothing_is_hedged_before_enough_is_known():
    hedge = Hedge(RetryBudget())
    operation, seen = script("bytes")
    assert await hedge.run(operation) == "bytes"
    assert (hedge.after_seconds(), seen["begun"]) == (None, 1)


async def test_a_slow_request_is_overtaken_and_cancelled():
    operation, seen = script(None, "bytes")
    assert await taught().run(operation) == "bytes"
    assert seen == {"begun": 2, "cancelled": 1}


async def test_an_error_of_one_waits_for_the_other():
    operation, _ = script("bytes", RegistryTimeout("second"))
    assert await taught().run(operation) == "bytes"
    operation, _ = script(RegistryTimeout("first"), "bytes")
    assert await taught().run(operation) == "bytes"


async def test_where_both_fail_the_first_error_counts():
    operation, _ = script(BlobNotFound("first"), RegistryTimeout("second"))
    with pytest.raises(BlobNotFound):
        await taught().run(operation)


async def test_without_budget_there_is_no_second_request():
    budget = RetryBudget(floor=0, clock=FakeTime().clock)
    operation, seen = script("bytes")
    assert await taught(budget).run(operation) == "bytes"
    assert seen["begun"] == 1


async def test_a_cancelled_caller_ends_both():
    operation, seen = script(None, None)
    task = asyncio.create_task(taught().run(operation))
    await operation.all_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == {"begun": 2, "cancelled": 2}


async def test_a_stalled_read_is_overtaken_when_hedging_is_asked_for(
    registry, make_registries, open_layer, layer
):
    registries = make_registries(hedge_reads=True)
    blob = await open_layer(registries)
    for position in range(20):
        await blob.read(position, 10)
    registry.inject(faults.stall())
    assert bytes(await blob.read(7, 100)) == layer[7:107]
    assert registry.count() == 22
