"""What a read returns when the server misbehaves: the right bytes or an error, never anything else."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import replace

import pytest

from blockgate.retry import RetryPolicy
from nbd_client.errors import (
    BlockgateError,
    RangeIgnored,
    SourceChanged,
    SourceError,
    SourceOverloaded,
    SourceProtocolError,
    SourceRefused,
    SourceTimeout,
    SourceUnreachable,
    WrongRange,
)
from nbd_client.source.http import HttpLimits, HttpSource
from nbd_client.source.response import Pin
from nbd_client.source.stack import SourceOptions, open_source
from tests.support.rangeserver import range_server

CONTENT = random.Random(3).randbytes(1 << 20)
QUICK = SourceOptions(
    http=HttpLimits(connections=8, connect_timeout_seconds=5, attempt_timeout_seconds=5),
    retry=RetryPolicy(total_seconds=10, first_backoff_seconds=0.001, longest_backoff_seconds=0.01),
)


def limited(times: int, fault):
    """``fault`` for the next ``times`` requests only."""
    left = [times]

    def apply(request, answer):
        if left[0]:
            left[0] -= 1
            fault(request, answer)

    return apply


@pytest.fixture
async def served():
    """A server, and an opened source of its content."""
    async with range_server(CONTENT) as server:
        source = await open_source(server.url, QUICK)
        yield server, source
        await source.aclose()


async def test_bytes_come_back_and_connections_are_kept(served):
    server, source = served
    for offset in (0, 5, 70_000, len(CONTENT) - 4096):
        assert await source.read(offset, 4096) == CONTENT[offset : offset + 4096]
    assert source.size == len(CONTENT)
    assert server.connections == 1


async def test_a_unix_socket_serves_as_well(tmp_path):
    async with range_server(CONTENT, unix_path=tmp_path / "a socket") as server:
        source = await open_source(server.url, QUICK)
        assert await source.read(1000, 1000) == CONTENT[1000:2000]
        await source.aclose()


async def test_random_reads_cost_exactly_what_they_need(served):
    server, source = served
    before = server.bytes_sent
    offsets = random.Random(5).sample(range(0, len(CONTENT), 8192), 64)
    for offset in offsets:
        await source.read(offset, 4096)
    assert server.count == 1 + 64
    assert server.bytes_sent - before == 64 * 4096


async def test_every_request_names_the_pinned_content(served):
    server, source = served
    await source.read(0, 10)
    assert server.requests[-1].fields[b"if-match"] == b'"v1"'
    assert server.requests[-1].fields[b"accept-encoding"] == b"identity"


def ignore_range(request, answer):
    answer.status, answer.body = 200, CONTENT
    del answer.fields["Content-Range"]


def other_range(request, answer):
    answer.body = CONTENT[request.start + 512 : request.end + 512]
    answer.fields["Content-Range"] = f"bytes {request.start + 512}-{request.end + 511}/{len(CONTENT)}"


def other_total(request, answer):
    answer.fields["Content-Range"] = f"bytes {request.start}-{request.end - 1}/{len(CONTENT) + 1}"


def label_longer_than_body(request, answer):
    answer.body = answer.body[:-1]


def no_label(request, answer):
    del answer.fields["Content-Range"]


def other_etag(request, answer):
    answer.fields["ETag"] = '"v2"'


def gone(request, answer):
    answer.status, answer.body, answer.fields = 410, b"gone", {}


def compressed(request, answer):
    answer.fields["Content-Encoding"] = "gzip"


def chunked(request, answer):
    answer.fields["Transfer-Encoding"] = "chunked"


def nonsense(request, answer):
    answer.raw_head = b"SSH-2.0-OpenSSH\r\n\r\n"


def endless_head(request, answer):
    answer.raw_head = b"HTTP/1.1 206 OK\r\nX: " + b"x" * 100_000


def multipart(request, answer):
    answer.fields["Content-Type"] = "multipart/byteranges; boundary=x"
    del answer.fields["Content-Range"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (ignore_range, RangeIgnored),
        (other_range, WrongRange),
        (other_total, SourceChanged),
        (label_longer_than_body, WrongRange),
        (no_label, WrongRange),
        (multipart, WrongRange),
        (other_etag, SourceChanged),
        (gone, SourceRefused),
        (compressed, SourceProtocolError),
        (chunked, SourceProtocolError),
        (nonsense, SourceProtocolError),
        (endless_head, SourceProtocolError),
    ],
)
async def test_a_doubtful_answer_is_an_error_and_never_bytes(served, fault, error):
    server, source = served
    server.faults.append(fault)
    with pytest.raises(error) as caught:
        await source.read(4096, 4096)
    assert server.url in str(caught.value)
    assert server.count == 2, "asking again cannot help"


def short(request, answer):
    if request.end - request.start > 1000:
        answer.body = answer.body[:1000]
        answer.fields["Content-Range"] = f"bytes {request.start}-{request.start + 999}/{len(CONTENT)}"


def truncated(request, answer):
    answer.send_bytes = len(answer.body) // 2


def reset(request, answer):
    answer.raw_head, answer.send_bytes = b"", 0


def busy(request, answer):
    answer.status, answer.body, answer.fields = 503, b"busy", {"Retry-After": "0"}


def failing(request, answer):
    answer.status, answer.body, answer.fields = 500, b"oops", {}


def closing(request, answer):
    answer.fields["Connection"] = "close"
    answer.close = True


def cut_head(request, answer):
    answer.raw_head, answer.send_bytes = b"HTTP/1.1 206 Partial\r\nContent-Le", 0


@pytest.mark.parametrize("fault", [short, truncated, reset, busy, failing, closing, cut_head])
async def test_what_passes_is_survived_with_the_right_bytes(served, fault):
    server, source = served
    server.faults.append(limited(3, fault))
    for offset in range(0, 80_000, 8000):
        assert await source.read(offset, 5000) == CONTENT[offset : offset + 5000]


async def test_a_truncated_body_is_resumed_not_fetched_again(served):
    server, source = served
    server.faults.append(limited(1, truncated))
    assert await source.read(0, 10_000) == CONTENT[:10_000]
    assert [(r.start, r.end) for r in server.requests[1:]] == [(0, 10_000), (5000, 10_000)]


async def test_a_kept_connection_that_went_stale_costs_no_backoff():
    patient = replace(QUICK, retry=RetryPolicy(total_seconds=10, first_backoff_seconds=1000))
    async with range_server(CONTENT) as server:
        source = await open_source(server.url, patient)
        server.drop_connections()
        assert await source.read(0, 4096) == CONTENT[:4096]
        await source.aclose()


async def test_a_stall_is_overcome_by_another_attempt(leap):
    def stall(request, answer):
        answer.stall_after_bytes, answer.stall_seconds = 1000, 60
        asyncio.get_running_loop().call_later(0.1, leap, QUICK.http.attempt_timeout_seconds)

    async with range_server(CONTENT) as server:
        source = await open_source(server.url, QUICK)
        server.faults.append(limited(1, stall))
        assert await source.read(0, 4096) == CONTENT[:4096]
        assert [(r.start, r.end) for r in server.requests[1:]] == [(0, 4096), (1000, 4096)]
        await source.aclose()


async def test_a_server_that_stays_silent_ends_in_an_error_at_the_deadline(leap):
    def silent(request, answer):
        answer.delay_seconds = 60
        leap(QUICK.http.attempt_timeout_seconds)

    async with range_server(CONTENT) as server:
        source = await open_source(server.url, QUICK)
        server.faults.append(silent)
        with pytest.raises(SourceTimeout):
            await source.read(0, 4096)
        # Two attempts of 5 s are the 10 s that a read may take.
        assert server.count == 1 + 2
        await source.aclose()


async def test_a_server_that_stays_busy_longer_than_the_deadline_is_not_waited_for():
    def busy_for_long(request, answer):
        answer.status, answer.body, answer.fields = 429, b"", {"Retry-After": "30"}

    async with range_server(CONTENT) as server:
        source = await open_source(server.url, QUICK)
        server.faults.append(busy_for_long)
        with pytest.raises(SourceOverloaded):
            await source.read(0, 4096)
        assert server.count == 2
        await source.aclose()


async def test_once_the_content_changed_no_new_byte_is_ever_handed_out(served):
    server, source = served
    old = await source.read(0, 4096)
    server.etag = '"v2"'
    for _ in range(2):
        with pytest.raises(SourceChanged):
            await source.read(8192, 4096)
    server.etag = '"v1"'
    with pytest.raises(SourceChanged):
        await source.read(16384, 4096)
    assert await source.read(0, 4096) == old, "what was read before is still true"


async def test_reattaching_to_other_content_is_refused(served):
    server, source = served
    again = await open_source(server.url, QUICK, pin=source.pin)
    await again.aclose()
    with pytest.raises(SourceChanged):
        await open_source(server.url, QUICK, pin=Pin(source.size, b'"v0"', None))


def redirect_to(location: str, status: int = 307):
    def fault(request, answer):
        if request.path == "/blob":
            answer.status, answer.body = status, b""
            answer.fields = {"Location": location}

    return fault


async def test_a_redirect_is_followed_once_and_remembered():
    async with range_server(CONTENT) as server:
        server.faults.append(redirect_to("/storage?signature=1"))
        source = await open_source(server.url, QUICK)
        assert await source.read(0, 4096) == CONTENT[:4096]
        assert [r.path for r in server.requests] == ["/blob", "/storage?signature=1", "/storage?signature=1"]
        await source.aclose()


async def test_an_expired_address_is_resolved_again():
    signature = [1]

    def fault(request, answer):
        if request.path == "/blob":
            answer.status, answer.body = 307, b""
            answer.fields = {"Location": f"/storage?signature={signature[0]}"}
        elif request.path != f"/storage?signature={signature[0]}":
            answer.status, answer.body, answer.fields = 403, b"", {}

    async with range_server(CONTENT) as server:
        server.faults.append(fault)
        source = await open_source(server.url, QUICK)
        signature[0] = 2
        assert await source.read(0, 4096) == CONTENT[:4096]
        await source.aclose()


async def test_redirects_without_end_are_refused():
    async with range_server(CONTENT) as server:
        server.faults.append(redirect_to("/blob"))
        with pytest.raises(SourceRefused, match="redirects"):
            await open_source(server.url, QUICK)


@pytest.mark.parametrize(("status", "error"), [(404, SourceRefused), (503, SourceOverloaded)])
async def test_opening_reports_what_the_server_says(status, error):
    def fault(request, answer):
        answer.status, answer.body, answer.fields = status, b"", {}

    async with range_server(CONTENT) as server:
        server.faults.append(fault)
        with pytest.raises(error, match=str(status)):
            await open_source(server.url, QUICK)


async def test_opening_an_empty_file_is_refused():
    async with range_server(b"") as server:
        with pytest.raises(SourceError):
            await open_source(server.url, QUICK)


async def test_a_closed_port_is_named():
    async with range_server(CONTENT) as server:
        url = server.url
    with pytest.raises(SourceUnreachable, match=r"127\.0\.0\.1"):
        await open_source(url, QUICK)


async def test_a_cancelled_read_leaves_no_connection_half_read(served):
    server, source = served
    server.delay_seconds = 0.05
    reads = [asyncio.create_task(source.read(n * 8192, 4096)) for n in range(8)]
    await asyncio.sleep(0)
    for read in reads[::2]:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    for n in range(16):
        assert await source.read(n * 8192, 4096) == CONTENT[n * 8192 : n * 8192 + 4096]


async def test_a_storm_of_faults_never_yields_a_wrong_byte(served):
    server, source = served
    rng = random.Random(11)
    harmful = [ignore_range, other_range, label_longer_than_body, no_label, compressed, nonsense]
    passing = [short, truncated, reset, busy, failing, closing, cut_head]

    def storm(request, answer):
        if rng.random() < 0.4:
            rng.choice(harmful + passing * 3)(request, answer)

    server.faults.append(storm)
    wrong = right = failed = 0

    async def one(offset: int, length: int) -> None:
        nonlocal wrong, right, failed
        try:
            data = await source.read(offset, length)
        except BlockgateError:
            failed += 1
        else:
            right += data == CONTENT[offset : offset + length]
            wrong += data != CONTENT[offset : offset + length]

    for _ in range(40):
        ranges = [(rng.randrange(len(CONTENT) - 20_000), rng.randrange(1, 20_000)) for _ in range(10)]
        await asyncio.gather(*(one(*r) for r in ranges))
    assert wrong == 0
    assert right > failed > 0


async def test_each_request_has_a_trace_of_its_own_which_its_error_names():
    def refuse(_request, answer):
        answer.status, answer.body = 403, b""

    async with range_server(bytes(4096)) as server:
        source = await HttpSource.open(server.url)
        target = memoryview(bytearray(512))
        await source.read_into(0, target)
        server.faults.append(refuse)
        with pytest.raises(SourceRefused) as caught:
            await source.read_into(0, target)
        await source.aclose()
        fields = [request.fields[b"traceparent"].decode() for request in server.requests]
    matches = [re.fullmatch(r"00-([0-9a-f]{16})([0-9a-f]{16})-([0-9a-f]{16})-00", text) for text in fields]
    assert len({match[1] for match in matches}) == 1
    assert [int(match[2], 16) for match in matches] == [int(match[3], 16) for match in matches] == [1, 2, 3]
    assert f"(trace {matches[2][1]}{matches[2][2]})" in str(caught.value)


CONTENT_PATH = "/v1/content/abc/data"


def names_its_content(request, answer):
    """By its name the server says under which address the content stays."""
    if request.path != CONTENT_PATH and answer.status == 206:
        answer.fields["Content-Location"] = CONTENT_PATH


async def test_reads_go_to_where_the_server_says_that_the_content_stays():
    async with range_server(CONTENT, faults=[names_its_content]) as server:
        source = await open_source(server.url, QUICK)
        try:
            assert bytes(await source.read(5, 100)) == CONTENT[5:105]
        finally:
            await source.aclose()
        assert [request.path for request in server.requests] == ["/blob", CONTENT_PATH]


async def test_the_same_through_a_unix_socket(tmp_path):
    async with range_server(CONTENT, unix_path=tmp_path / "s", faults=[names_its_content]) as server:
        source = await open_source(server.url, QUICK)
        try:
            assert bytes(await source.read(5, 100)) == CONTENT[5:105]
        finally:
            await source.aclose()
        assert [request.path for request in server.requests] == ["/blob", CONTENT_PATH]


async def test_a_content_address_that_a_proxy_does_not_know_leads_back_to_the_name():
    def unknown(request, answer):
        names_its_content(request, answer)
        if request.path == CONTENT_PATH:
            answer.status, answer.body = 404, b""
            answer.fields.clear()

    async with range_server(CONTENT, faults=[unknown]) as server:
        source = await open_source(server.url, QUICK)
        try:
            for offset in (5, 100_000):
                assert bytes(await source.read(offset, 100)) == CONTENT[offset : offset + 100]
        finally:
            await source.aclose()
        assert [request.path for request in server.requests] == ["/blob", CONTENT_PATH, "/blob", "/blob"]


@pytest.mark.parametrize("elsewhere", ["http://127.0.0.1:1/x", "//127.0.0.1:1/x", "relative", ""])
async def test_a_content_address_of_another_server_is_not_followed(elsewhere):
    def tempts(_request, answer):
        answer.fields["Content-Location"] = elsewhere

    async with range_server(CONTENT, faults=[tempts]) as server:
        source = await open_source(server.url, QUICK)
        try:
            assert bytes(await source.read(5, 100)) == CONTENT[5:105]
        finally:
            await source.aclose()
        assert [request.path for request in server.requests] == ["/blob", "/blob"]
