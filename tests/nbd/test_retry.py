from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockgate.retry import Attempts, RetryPolicy
from nbd_client.errors import (
    RangeNotSatisfiable,
    SourceChanged,
    SourceOverloaded,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
    TruncatedBody,
)
from nbd_client.source.retry import RetryReader

CONTENT = bytes(range(256)) * 16
POLICY = RetryPolicy(total_seconds=60, first_backoff_seconds=0.1, longest_backoff_seconds=5)


class ScriptedSource:
    """Answers reads by a script: a number is how many bytes come, an error is raised."""

    size = len(CONTENT)

    def __init__(self, *script) -> None:
        self.script = list(script)
        self.asked = []
        self.deadlines = []

    async def read_into(self, offset, target, deadline):
        self.deadlines.append(deadline)
        self.asked.append((offset, len(target)))
        step = self.script.pop(0) if self.script else len(target)
        count = step.received if isinstance(step, TruncatedBody) else step
        if isinstance(count, int):
            target[:count] = CONTENT[offset : offset + count]
        if isinstance(step, Exception):
            raise step
        return step

    async def aclose(self):
        pass


class Sleeps(list):
    async def __call__(self, seconds):
        self.append(seconds)


def reader(*script, jitter=lambda: 0.5):
    source, sleeps = ScriptedSource(*script), Sleeps()
    return RetryReader(source, POLICY, jitter=jitter, sleep=sleeps), source, sleeps


async def test_short_answers_are_continued_without_waiting():
    reading, source, sleeps = reader(10, 20)
    assert await reading.read(5, 100) == CONTENT[5:105]
    assert source.asked == [(5, 100), (15, 90), (35, 70)]
    assert sleeps == []


async def test_a_truncated_body_is_resumed_where_it_broke_off():
    reading, source, sleeps = reader(TruncatedBody("cut", received=30))
    assert await reading.read(0, 100) == CONTENT[:100]
    assert source.asked == [(0, 100), (30, 70)]
    assert sleeps == [0.05]


@pytest.mark.parametrize("error", [SourceUnreachable("x"), SourceTimeout("x"), SourceOverloaded("x")])
async def test_what_may_pass_is_tried_again(error):
    reading, _, sleeps = reader(error, error, error)
    assert await reading.read(0, 16) == CONTENT[:16]
    assert sleeps == [0.05, 0.1, 0.2]


@pytest.mark.parametrize("error", [SourceRefused("x"), SourceChanged("x")])
async def test_what_will_not_pass_is_raised_at_once(error):
    reading, source, _ = reader(error)
    with pytest.raises(type(error)):
        await reading.read(0, 16)
    assert len(source.asked) == 1


async def test_what_the_server_asks_for_is_waited_for():
    reading, _, sleeps = reader(SourceOverloaded("x", retry_after_seconds=7))
    await reading.read(0, 16)
    assert sleeps == [7.05]


async def test_bounds_are_checked_and_nothing_is_asked_for_nothing():
    reading, source, _ = reader()
    assert await reading.read(len(CONTENT), 0) == b""
    with pytest.raises(RangeNotSatisfiable):
        await reading.read(len(CONTENT) - 1, 2)
    assert source.asked == []


async def test_one_deadline_is_given_to_every_attempt_of_a_read():
    reading, source, _ = reader(SourceTimeout("x"), 5, SourceUnreachable("x"))
    before = asyncio.get_running_loop().time()
    await reading.read(0, 16)
    assert len(set(source.deadlines)) == 1
    assert before + 60 <= source.deadlines[0] <= asyncio.get_running_loop().time() + 60


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 40)), max_size=30))
def test_waits_are_bounded_and_never_end_after_the_deadline(rounds):
    now = 1000.0
    jitter = iter([j for j, _ in rounds])
    attempts = Attempts(POLICY, now, lambda: next(jitter))
    for n, (_, retry_after) in enumerate(rounds):
        wait = attempts.wait_after(SourceOverloaded("x", retry_after_seconds=retry_after), now)
        if wait is None:
            return
        assert retry_after <= wait <= retry_after + min(5, 0.1 * 2**n)
        assert now + wait < 1060
        now += wait
