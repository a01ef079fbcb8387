"""Reading blobs from a registry that misbehaves: nothing changes but time, or the right error is raised."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gateway.errors import (
    AddressRefused,
    BlobNotFound,
    RangeIgnored,
    RangeNotSatisfiable,
    RegistryOverloaded,
    RegistryProtocolError,
    RegistryTimeout,
    RegistryUnauthorized,
    TruncatedBody,
    UpstreamError,
    WrongRange,
)
from gateway.registry.blob import MinimumRate
from gateway.registry.retry import RetryPolicy
from tests.support import faultregistry as faults


async def collect(pieces) -> bytes:
    return b"".join([bytes(piece) async for piece in pieces])


async def test_a_read_is_exactly_one_closed_range_request(registry, make_registries, open_layer, layer):
    blob = await open_layer(make_registries())
    assert blob.size == len(layer)
    assert bytes(await blob.read(1000, 350_000)) == layer[1000:351_000]
    (request,) = registry.requests
    assert request.range == "bytes=1000-350999"
    assert request.headers["accept-encoding"] == "identity"


async def test_opening_and_empty_reads_ask_nothing(registry, make_registries, open_layer):
    blob = await open_layer(make_registries())
    assert bytes(await blob.read(5, 0)) == b""
    assert registry.requests == []


async def test_a_read_outside_of_the_blob_is_refused_here(registry, make_registries, open_layer, layer):
    blob = await open_layer(make_registries())
    with pytest.raises(RangeNotSatisfiable):
        await blob.read(len(layer) - 1, 2)
    assert registry.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        faults.status(500),
        faults.status(502),
        faults.status(503, retry_after="2"),
        faults.status(429, retry_after="1"),
        faults.truncate(after=10),
        faults.truncate(after=0),
        faults.truncate(after=100, chunked=True),
        faults.reset(),
        faults.reset(after=500),
        faults.wrong_content_range,
        faults.wrong_total,
        faults.other_range,
        faults.multipart,
    ],
)
async def test_a_passing_fault_changes_nothing_but_time(registry, make_registries, open_layer, layer, fault):
    blob = await open_layer(make_registries())
    registry.inject(fault, times=2)
    assert bytes(await blob.read(7, 4096)) == layer[7:4103]
    assert registry.count() == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.status(500), RegistryOverloaded),
        (faults.status(429), RegistryOverloaded),
        (faults.truncate(after=10), TruncatedBody),
        (faults.truncate(after=100, chunked=True), TruncatedBody),
        (faults.reset(after=10), TruncatedBody),
        (faults.wrong_content_range, WrongRange),
        (faults.other_range, WrongRange),
        (faults.multipart, WrongRange),
    ],
)
async def test_a_lasting_fault_is_named_after_all_attempts(
    registry, make_registries, open_layer, fault, error
):
    blob = await open_layer(make_registries(policy=RetryPolicy(attempts=3)))
    registry.inject(fault, times=None)
    with pytest.raises(error) as caught:
        await blob.read(7, 4096)
    assert registry.host in str(caught.value)
    assert registry.count() == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.status(403), RegistryUnauthorized),
        (faults.status(400), RegistryProtocolError),
        (faults.status(416, content_range="bytes */10"), RegistryProtocolError),
        (faults.gzip_encoded, RegistryProtocolError),
        (faults.status(404), BlobNotFound),
        (faults.ignore_range, RangeIgnored),
        (faults.status(307, location="http://169.254.169.254/latest/meta-data"), AddressRefused),
        (faults.status(307, location="file:///etc/passwd"), AddressRefused),
        (faults.status(307), RegistryProtocolError),
    ],
)
async def test_what_cannot_get_better_is_not_asked_twice(registry, make_registries, open_layer, fault, error):
    blob = await open_layer(make_registries())
    registry.inject(fault, times=None)
    with pytest.raises(error) as caught:
        await blob.read(7, 4096)
    assert registry.count() == 1
    assert not caught.value.retryable


async def test_a_host_that_ignores_ranges_is_not_asked_for_more_until_a_minute_has_passed(
    registry, make_registries, open_layer, layer, fake_time
):
    blob = await open_layer(make_registries())
    registry.inject(faults.ignore_range)
    for _ in range(3):
        with pytest.raises(RangeIgnored):
            await blob.read(0, 100)
    assert registry.count() == 1
    fake_time.now += 61
    assert bytes(await blob.read(0, 100)) == layer[:100]


async def test_a_deleted_blob_is_blob_not_found(registry, make_registries, open_layer, image):
    blob = await open_layer(make_registries())
    await blob.read(0, 10)
    registry.delete_blob(image.layers[0].digest)
    with pytest.raises(BlobNotFound, match="team/app"):
        await blob.read(0, 10)


async def test_retry_after_is_waited_for(registry, make_registries, open_layer, fake_time):
    blob = await open_layer(make_registries())
    registry.inject(faults.status(503, retry_after="7"))
    await blob.read(0, 10)
    assert max(fake_time.sleeps) >= 7


async def test_retry_after_as_a_date_is_waited_for(registry, make_registries, open_layer, fake_time):
    blob = await open_layer(make_registries())
    registry.inject(
        faults.status(429, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=20)))
    )
    await blob.read(0, 10)
    assert max(fake_time.sleeps) > 10


async def test_a_retry_after_beyond_the_deadline_is_handed_up_at_once(
    registry, make_registries, open_layer, fake_time
):
    blob = await open_layer(make_registries())
    registry.inject(faults.status(429, retry_after="3600"), times=None)
    with pytest.raises(RegistryOverloaded) as caught:
        await blob.read(0, 10)
    assert caught.value.retry_after_seconds == 30
    assert fake_time.sleeps == []


@pytest.fixture
def stall_for_long(leap: Callable[[float], None]) -> faults.Fault:
    """Five bytes, then nothing until the time of an attempt is over."""

    def fault(request: faults.Request, reply: faults.Reply) -> None:
        faults.stall(after=5)(request, reply)
        asyncio.get_running_loop().call_later(0.1, leap, RetryPolicy().attempt_seconds)

    return fault


async def test_a_stalled_attempt_ends_at_its_deadline_and_is_repeated(
    registry, make_registries, open_layer, layer, stall_for_long
):
    blob = await open_layer(make_registries())
    registry.inject(stall_for_long)
    assert bytes(await blob.read(0, 100)) == layer[:100]


async def test_a_lasting_stall_is_a_timeout(registry, make_registries, open_layer):
    blob = await open_layer(make_registries(policy=RetryPolicy(attempt_seconds=0.2, attempts=2)))
    registry.inject(faults.stall(), times=None)
    with pytest.raises(RegistryTimeout):
        await blob.read(0, 100)


async def test_a_drip_below_the_minimum_rate_is_a_timeout(registry, make_registries, open_layer):
    slow = MinimumRate(bytes_per_second=100_000, window_seconds=0.3)
    blob = await open_layer(make_registries(minimum_rate=slow, policy=RetryPolicy(attempts=1)))
    registry.inject(faults.drip(), times=None)
    with pytest.raises(RegistryTimeout, match="slowly"):
        await blob.read(0, 5000)


class Counts:
    """A ``RegistryObserver`` that adds up."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.retries: list[str] = []
        self.states: list[str] = []
        self.received_bytes = 0
        self.hosts: set[str] = set()

    def request_finished(self, host, outcome, seconds):
        assert seconds >= 0
        self.hosts.add(host)
        self.outcomes.append(outcome)

    def bytes_received(self, host, count):
        self.hosts.add(host)
        self.received_bytes += count

    def retried(self, host, reason):
        self.retries.append(reason)

    def breaker_made(self, host, breaker):
        pass

    def breaker_changed(self, host, state):
        self.states.append(state)


async def test_requests_bytes_and_retries_are_told_to_the_observer(
    registry, make_registries, open_layer, layer
):
    registry.redirects = True
    counts = Counts()
    blob = await open_layer(make_registries(observer=counts))
    registry.inject(faults.truncate(after=30), matching=lambda request: request.to_storage)
    await blob.read(0, 100)
    assert counts.outcomes == ["registry_truncated", "ok"]
    assert counts.retries == ["registry_truncated"]
    assert counts.received_bytes >= 100
    before = counts.received_bytes
    await collect(blob.stream())
    assert counts.received_bytes - before == len(layer)
    assert counts.hosts == {registry.host}
    registry.inject(faults.status(500), times=None)
    with pytest.raises(RegistryOverloaded):
        await blob.read(0, 100)
    assert "open" in counts.states


async def test_a_cancelled_read_leaves_a_usable_source(registry, make_registries, open_layer, layer):
    blob = await open_layer(make_registries())
    registry.inject(faults.stall(after=10))
    task = asyncio.create_task(blob.read(0, 100))
    await registry.arrived()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bytes(await blob.read(0, 100)) == layer[:100]


# --- redirects


async def test_a_signed_url_is_used_again_until_it_expires_and_then_resolved_once(
    registry, make_registries, open_layer, layer
):
    registry.redirects = True
    blob = await open_layer(make_registries())
    for position in range(3):
        assert bytes(await blob.read(position, 100)) == layer[position : position + 100]
    assert registry.count("/v2/") == 1
    registry.expire_signatures()
    reads = await asyncio.gather(*(blob.read(position, 100) for position in range(8)))
    assert [bytes(read) for read in reads] == [layer[position : position + 100] for position in range(8)]
    assert registry.count("/v2/") == 2


async def test_the_first_reads_at_once_resolve_once(registry, make_registries, open_layer):
    registry.redirects = True
    blob = await open_layer(make_registries())
    await asyncio.gather(*(blob.read(position, 100) for position in range(8)))
    assert registry.count("/v2/") == 1
    assert registry.matching("/v2/")[0].range is not None


async def test_a_place_is_asked_for_anew_after_its_lifetime(registry, make_registries, open_layer, fake_time):
    registry.redirects = True
    blob = await open_layer(make_registries())
    await blob.read(0, 10)
    fake_time.now += 301
    await blob.read(0, 10)
    assert registry.count("/v2/") == 2


async def test_a_signed_url_that_stays_refused_is_an_error_without_its_query(
    registry, make_registries, open_layer
):
    registry.redirects = True
    registry.inject(faults.status(403), times=None, matching=lambda request: request.to_storage)
    blob = await open_layer(make_registries())
    with pytest.raises(RegistryUnauthorized) as caught:
        await blob.read(0, 10)
    assert "Signature" not in str(caught.value)


@pytest.mark.parametrize(
    "fault", [faults.reset(), faults.truncate(after=1), "stall", faults.status(500), None]
)
async def test_a_signed_url_is_in_no_log_and_no_traceback(
    registry, make_registries, open_layer, caplog, stall_for_long, fault
):
    caplog.set_level(logging.DEBUG)
    registry.redirects = True
    blob = await open_layer(make_registries(policy=RetryPolicy(attempts=1)))
    if fault is None:
        await blob.read(0, 10)
    else:
        fault = stall_for_long if fault == "stall" else fault
        registry.inject(fault, times=None, matching=lambda request: request.to_storage)
        with pytest.raises(UpstreamError) as caught:
            await blob.read(0, 10)
        assert "Signature" not in "".join(traceback.format_exception(caught.value))
    assert any(request.to_storage for request in registry.requests)
    assert "Signature" not in caplog.text


async def test_credentials_never_follow_a_redirect_to_another_origin(
    registry, make_registries, open_layer, layer
):
    registry.redirects, registry.scheme = True, "bearer"
    blob = await open_layer(make_registries())
    assert bytes(await blob.read(0, 10)) == layer[:10]
    assert all("authorization" not in request.headers for request in registry.requests if request.to_storage)


async def test_a_redirect_to_a_loopback_address_is_refused_without_the_allow_list(
    registry, make_registries, open_layer
):
    registry.redirects = True
    blob = await open_layer(make_registries(allowed=()))
    with pytest.raises(AddressRefused, match="allowed addresses"):
        await blob.read(0, 10)
    assert not any(request.to_storage for request in registry.requests)


async def test_redirects_in_a_circle_end(registry, make_registries, open_layer, image):
    path = f"/v2/team/app/blobs/{image.layers[0].digest}"
    registry.inject(faults.status(307, location=path), times=None)
    blob = await open_layer(make_registries())
    with pytest.raises(RegistryProtocolError, match="redirects"):
        await blob.read(0, 10)
    assert registry.count() == 6


# --- streams


async def test_a_stream_is_one_request_without_a_range(registry, make_registries, open_layer, layer):
    blob = await open_layer(make_registries())
    assert await collect(blob.stream()) == layer
    (request,) = registry.requests
    assert request.range is None


async def test_a_stream_starts_anywhere(registry, make_registries, open_layer, layer):
    blob = await open_layer(make_registries())
    assert await collect(blob.stream(1_000_000)) == layer[1_000_000:]
    assert registry.requests[0].range == f"bytes=1000000-{len(layer) - 1}"
    assert await collect(blob.stream(len(layer))) == b""


@pytest.mark.parametrize(
    "fault",
    [
        faults.truncate(after=600_000),
        faults.reset(after=600_000),
        faults.status(503),
        faults.truncate(after=0),
    ],
)
async def test_a_broken_stream_is_resumed_where_it_ended(registry, make_registries, open_layer, layer, fault):
    blob = await open_layer(make_registries())
    registry.inject(fault)
    assert await collect(blob.stream()) == layer


async def test_a_stream_outlives_its_token_and_its_signature(registry, make_registries, open_layer, layer):
    registry.redirects, registry.scheme = True, "bearer"
    blob = await open_layer(make_registries())
    registry.inject(faults.truncate(after=600_000), matching=lambda request: request.to_storage)
    received = bytearray()
    async for piece in blob.stream():
        if not received:
            registry.expire_tokens()
            registry.expire_signatures()
        received += piece
    assert received == layer


async def test_a_stream_that_drips_is_cut_and_resumed(registry, make_registries, open_layer, layer, leap):
    def drip_for_long(request: faults.Request, reply: faults.Reply) -> None:
        faults.drip(piece_bytes=10)(request, reply)
        asyncio.get_running_loop().call_later(0.2, leap, MinimumRate().window_seconds)

    blob = await open_layer(make_registries())
    registry.inject(drip_for_long)
    assert await collect(blob.stream()) == layer
    assert registry.count() == 2


async def test_a_slow_consumer_does_not_make_the_registry_slow(
    registry, make_registries, open_layer, layer, leap
):
    slow = MinimumRate(bytes_per_second=len(layer) / 60, window_seconds=60)
    blob = await open_layer(make_registries(minimum_rate=slow))
    received = bytearray()
    async for piece in blob.stream():
        if not received:
            leap(60)
        received += piece
    assert received == layer
    assert registry.count() == 1


async def test_a_stream_that_never_progresses_gives_up(registry, make_registries, open_layer):
    blob = await open_layer(make_registries(policy=RetryPolicy(stream_attempts=3)))
    for fault, error in [
        (faults.truncate(after=0), TruncatedBody),
        (faults.truncate(after=10), TruncatedBody),
        (faults.status(503, retry_after="0"), RegistryOverloaded),
    ]:
        registry.heal()
        registry.inject(fault, times=None)
        before = registry.count()
        with pytest.raises(error):
            await collect(blob.stream())
        assert registry.count() - before == 3


async def test_a_registry_that_is_away_for_ten_seconds_delays_a_stream_and_no_more(
    registry, make_registries, open_layer, layer, fake_time
):
    blob = await open_layer(make_registries())
    came_back = fake_time.now + 10
    registry.inject(faults.truncate(after=600_000))
    registry.inject(faults.status(502), times=None, matching=lambda request: fake_time.now < came_back)
    assert await collect(blob.stream()) == layer
    assert fake_time.now >= came_back


async def test_a_stream_of_a_host_that_ignores_ranges_works_until_it_breaks(
    registry, make_registries, open_layer, layer
):
    blob = await open_layer(make_registries())
    registry.inject(faults.truncate(after=1000))
    registry.inject(faults.ignore_range, times=None)
    with pytest.raises(RangeIgnored):
        await collect(blob.stream())


async def test_leaving_a_stream_early_closes_its_connection(registry, make_registries, open_layer, layer):
    blob = await open_layer(make_registries())
    stream = blob.stream()
    await anext(stream)
    await stream.aclose()
    assert bytes(await blob.read(0, 10)) == layer[:10]


async def test_a_whole_blob_of_another_length_is_refused(registry, make_registries, open_layer):
    blob = await open_layer(make_registries(policy=RetryPolicy(stream_attempts=1)))
    registry.inject(faults.oversize(5_000_000))
    with pytest.raises(WrongRange, match="expected"):
        await collect(blob.stream())
