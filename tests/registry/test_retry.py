"""Retries, budget and breaker, in invented time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockgate.retry import parse_retry_after
from gateway.errors import (
    BlobNotFound,
    RegistryOverloaded,
    RegistryTimeout,
    RegistryUnreachable,
    UpstreamError,
)
from gateway.registry.breaker import Breaker
from gateway.registry.observe import CountingObserver, SilentObserver
from gateway.registry.retry import Retrier, RetryBudget, RetryPolicy
from tests.support.faketime import FakeTime

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Host:
    host: str
    breaker: Breaker


@dataclass
class Notes:
    requests: list[tuple[str, str]] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def request_finished(self, host, outcome, seconds):
        self.requests.append((host, outcome))

    def bytes_received(self, host, count):
        raise AssertionError("the loop sees no bytes")

    def retried(self, host, reason):
        self.retries.append(reason)

    def breaker_made(self, host, breaker):
        pass

    def breaker_changed(self, host, state):
        self.states.append(state)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def host(time, notes) -> Host:
    return Host("origin", Breaker("origin", clock=time.clock, observer=notes))


def retrier(time: FakeTime, notes: Notes | None = None, **policy) -> Retrier:
    return Retrier(
        RetryPolicy(**policy),
        budget=RetryBudget(clock=time.clock),
        clock=time.clock,
        sleep=time.sleep,
        rng=random.Random(1),
        observer=notes or Notes(),
    )


def script(*results):
    """An operation that gives or raises one result after another, the last for ever; and whom it asked."""
    asked: list[str] = []
    remaining = list(results)

    async def operation(target: Host) -> str:
        asked.append(target.host)
        result = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if isinstance(result, BaseException):
            raise result
        return result

    return operation, asked


def down() -> UpstreamError:
    return RegistryUnreachable("down")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("3600", 30),
        ("9" * 500, 30),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        (format_datetime(NOW + timedelta(seconds=12), usegmt=True), 12),
        (format_datetime(NOW + timedelta(days=12), usegmt=True), 30),
        (format_datetime(NOW - timedelta(days=12), usegmt=True), 0),
        ("Thu, 01 Jan 2026 00:00:05 -0000", 5),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(value, seconds):
    assert parse_retry_after(value, NOW) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_is_none_or_within_the_cap(text):
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or 0 <= seconds <= 30


@given(st.integers(1, 10_000), st.integers())
def test_backoff_is_full_jitter_below_an_exponential_bound(failures, seed):
    policy = RetryPolicy(backoff_base_seconds=0.1, backoff_cap_seconds=5)
    seconds = policy.backoff_seconds(failures, random.Random(seed))
    assert 0 <= seconds <= min(5, 0.1 * 2 ** min(failures, 100))


async def test_a_success_is_asked_for_once(time, host, notes):
    operation, asked = script("bytes")
    assert await retrier(time, notes).run([host], operation) == "bytes"
    assert asked == ["origin"]
    assert notes.requests == [("origin", "ok")]


async def test_what_is_retryable_is_repeated_up_to_the_number_of_attempts(time, host, notes):
    operation, asked = script(down(), down(), "bytes")
    assert await retrier(time, notes).run([host], operation) == "bytes"
    assert notes.retries == ["registry_unreachable"] * 2
    operation, asked = script(down())
    with pytest.raises(RegistryUnreachable):
        await retrier(time, attempts=3).run([host], operation)
    assert len(asked) == 3


async def test_what_is_not_retryable_is_raised_at_once(time, host):
    operation, asked = script(BlobNotFound("gone"))
    with pytest.raises(BlobNotFound):
        await retrier(time).run([host], operation)
    assert len(asked) == 1


async def test_retry_after_is_the_least_wait(time, host):
    operation, _ = script(RegistryOverloaded("busy", retry_after_seconds=9), "bytes")
    await retrier(time).run([host], operation)
    assert time.sleeps == [9]


async def test_no_wait_reaches_beyond_the_deadline(time, host):
    operation, asked = script(RegistryOverloaded("busy", retry_after_seconds=9))
    with pytest.raises(RegistryOverloaded):
        await retrier(time, attempts=100, deadline_seconds=25).run([host], operation)
    assert len(asked) == 3
    assert time.now < 1025


async def test_an_attempt_that_takes_too_long_is_a_timeout(time, host):
    async def operation(target):
        await asyncio.Event().wait()

    with pytest.raises(RegistryTimeout, match="origin"):
        await retrier(time, attempts=1, attempt_seconds=0.01).run([host], operation)


async def test_a_timeout_of_the_caller_is_not_taken_for_one_of_the_registry(time, host):
    async def operation(target):
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await retrier(time).run([host], operation)
    assert host.breaker.state == "closed"


async def test_retries_are_a_tenth_of_requests_once_the_floor_is_used_up(time, host):
    loop = Retrier(
        RetryPolicy(attempts=2),
        budget=RetryBudget(floor=5, floor_per_second=0, clock=time.clock),
        observer=SilentObserver(),
        rng=random.Random(1),
        clock=time.clock,
        sleep=time.sleep,
    )
    busy = RegistryOverloaded("busy", retry_after_seconds=0)  # does not open the breaker
    operation, asked = script(busy)
    for _ in range(1000):
        with pytest.raises(RegistryOverloaded):
            await loop.run([host], operation)
    assert 1000 + 100 <= len(asked) <= 1000 + 5 + 100


def test_the_floor_comes_back_with_time_alone(time):
    budget = RetryBudget(floor=3, floor_per_second=1, clock=time.clock)
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]
    time.now += 2
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    time.now += 1000
    assert sum(budget.withdraw() for _ in range(100)) == 3


@given(st.lists(st.sampled_from(["deposit", "withdraw", "wait"]), max_size=200))
def test_the_budget_never_gives_more_than_it_got(steps):
    time = FakeTime()
    budget = RetryBudget(ratio=0.1, floor=2, floor_per_second=0.5, ceiling=4, clock=time.clock)
    taken = 0
    for step in steps:
        if step == "deposit":
            budget.deposit()
        elif step == "withdraw":
            taken += budget.withdraw()
        else:
            time.now += 1
    assert taken <= 2 + 0.1 * steps.count("deposit") + 0.5 * steps.count("wait") + 1e-6


async def test_failures_in_a_row_open_the_breaker_and_a_probe_closes_it(time, host, notes):
    loop = retrier(time, notes, attempts=1, breaker_patience_seconds=0)
    failing, asked = script(down())
    for _ in range(5):
        with pytest.raises(RegistryUnreachable):
            await loop.run([host], failing)
    assert host.breaker.state == "open"
    with pytest.raises(RegistryUnreachable, match="not asked") as caught:
        await loop.run([host], failing)
    assert len(asked) == 5
    assert 0 < caught.value.retry_after_seconds <= 1
    time.now += 1
    working, _ = script("bytes")
    assert await loop.run([host], working) == "bytes"
    assert notes.states == ["open", "half_open", "closed"]


def trip(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.enter()
        breaker.failed()


def test_an_open_breaker_reads_half_open_when_its_cooldown_is_over_although_nobody_asks(time, host):
    trip(host.breaker)
    assert host.breaker.state == "open"
    time.now += 1
    assert host.breaker.state == "half_open"


def test_a_breaker_that_nobody_has_asked_for_minutes_is_not_reported(time):
    counts = CountingObserver()
    breaker = Breaker("registry.test", clock=time.clock, observer=counts)
    counts.breaker_made("registry.test", breaker)
    assert counts.breaker_states() == {}, "nobody has asked it at all"
    trip(breaker)
    assert counts.breaker_states() == {"registry.test": "open"}
    time.now += 60
    assert counts.breaker_states() == {"registry.test": "half_open"}
    time.now += 300
    assert counts.breaker_states() == {}
    breaker.enter()
    breaker.succeeded()
    assert counts.breaker_states() == {"registry.test": "closed"}


def test_a_host_that_answers_one_scheme_is_not_reported_as_silent_for_the_other(time):
    counts = CountingObserver()
    tls, plain = (Breaker("registry.test", clock=time.clock, observer=counts) for _ in range(2))
    for breaker in (tls, plain):
        counts.breaker_made("registry.test", breaker)
    trip(tls)
    assert counts.breaker_states() == {"registry.test": "open"}
    plain.enter()
    plain.succeeded()
    assert counts.breaker_states() == {"registry.test": "closed"}


async def test_no_attempt_begins_so_late_that_its_own_timeout_would_hide_the_real_error(time, host):
    refused = RegistryUnreachable("connection refused", retry_after_seconds=9.9)
    operation, asked = script(refused)
    with pytest.raises(RegistryUnreachable, match="connection refused"):
        await retrier(time, deadline_seconds=10.0).run([host], operation)
    assert len(asked) == 1


async def test_an_origin_without_time_left_gives_its_mirrors_error(time, host):
    mirror = Host("mirror", Breaker("mirror", clock=time.clock, observer=SilentObserver()))
    asked = []

    async def operation(target):
        asked.append(target.host)
        time.now += 9.9
        raise RegistryUnreachable(f"{target.host} is slow")

    with pytest.raises(RegistryUnreachable, match="mirror is slow"):
        await retrier(time, deadline_seconds=10.0).run([mirror, host], operation)
    assert asked == ["mirror"]


async def test_a_registry_that_is_down_for_ten_minutes_sees_few_requests_and_is_found_within_ten_seconds(
    time, host
):
    loop = retrier(time, attempts=4)
    failing, asked = script(down())
    ends = time.now + 600
    while time.now < ends:
        with pytest.raises(RegistryUnreachable):
            await loop.run([host], failing)
        time.now += 0.05
    assert len(asked) < 200
    back = time.now
    working, _ = script("bytes")
    while True:
        try:
            await loop.run([host], working)
            break
        except RegistryUnreachable:
            time.now += 0.05
    assert time.now - back < 10


async def test_only_one_request_probes_and_the_rest_follow_when_it_succeeds(time, host):
    for _ in range(5):
        host.breaker.enter()
        host.breaker.failed()
    time.now += 1
    release = asyncio.Event()
    running: list[int] = []

    async def operation(target):
        running.append(len(running))
        if len(running) == 1:
            await release.wait()
        return "bytes"

    loop = retrier(time, breaker_patience_seconds=1000, deadline_seconds=1000)
    tasks = [asyncio.create_task(loop.run([host], operation)) for _ in range(5)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(running) == 1
    release.set()
    assert await asyncio.gather(*tasks) == ["bytes"] * 5


async def test_a_cancelled_probe_lets_another_probe(time, host):
    for _ in range(5):
        host.breaker.enter()
        host.breaker.failed()
    time.now += 1

    async def hang(target):
        await asyncio.Event().wait()

    task = asyncio.create_task(retrier(time).run([host], hang))
    for _ in range(5):
        await asyncio.sleep(0)
    assert host.breaker.wait_seconds() > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.breaker.wait_seconds() == 0


async def test_answers_that_speak_for_the_host_do_not_open_its_breaker(time, host):
    loop = retrier(time, attempts=1)
    for error in (BlobNotFound("gone"), RegistryOverloaded("busy", retry_after_seconds=1)):
        operation, _ = script(error)
        for _ in range(10):
            with pytest.raises(UpstreamError):
                await loop.run([host], operation)
    assert host.breaker.state == "closed"


@given(st.lists(st.sampled_from(["ask_ok", "ask_fail", "ask_cancel", "wait"]), max_size=100))
def test_the_breaker_never_shuts_a_host_out_for_more_than_its_longest_cooldown(steps):
    time = FakeTime()
    breaker = Breaker(
        "host",
        threshold=2,
        cooldown_seconds=1,
        max_cooldown_seconds=5,
        clock=time.clock,
        observer=SilentObserver(),
    )
    for step in steps:
        assert breaker.wait_seconds() <= 5
        if step == "wait":
            time.now += 0.7
        elif breaker.wait_seconds() == 0:
            breaker.enter()
            {"ask_ok": breaker.succeeded, "ask_fail": breaker.failed, "ask_cancel": breaker.abandoned}[step]()
    time.now += 5
    assert breaker.wait_seconds() == 0


async def test_mirrors_are_asked_in_order_and_then_the_origin(time, host, notes):
    mirrors = [
        Host(name, Breaker(name, clock=time.clock, observer=SilentObserver())) for name in ("first", "second")
    ]
    operation, asked = script(down(), BlobNotFound("not mirrored"), "bytes")
    assert await retrier(time, notes).run([*mirrors, host], operation) == "bytes"
    assert asked == ["first", "second", "origin"]
    assert notes.retries == ["registry_unreachable", "blob_not_found"]


async def test_a_mirror_with_an_open_breaker_is_passed_over_without_waiting(time, host):
    mirror = Host("mirror", Breaker("mirror", clock=time.clock, observer=SilentObserver()))
    for _ in range(5):
        mirror.breaker.enter()
        mirror.breaker.failed()
    operation, asked = script("bytes")
    await retrier(time).run([mirror, host], operation)
    assert asked == ["origin"]
    assert time.sleeps == []


async def test_the_error_is_the_origin_s_where_all_fail(time, host):
    mirror = Host("mirror", Breaker("mirror", clock=time.clock, observer=SilentObserver()))
    operation, _ = script(down(), BlobNotFound("gone"))
    with pytest.raises(BlobNotFound):
        await retrier(time).run([mirror, host], operation)
