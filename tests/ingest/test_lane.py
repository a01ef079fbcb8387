"""The digest lane: order, errors, the end; span digests against a naive implementation."""

from __future__ import annotations

import contextlib
import hashlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ingest.lane import BitSpanDigests, DigestLane, SpanDigests


def sha(data):
    return hashlib.sha256(data).digest()


def test_calls_run_in_order_on_one_other_thread():
    seen = []
    lane = DigestLane()
    for number in range(200):
        lane.submit(lambda number=number: seen.append((number, threading.get_ident())))
    lane.close()
    assert [number for number, _ in seen] == list(range(200))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] != threading.get_ident()


def test_the_first_error_is_raised_by_close_and_nothing_runs_after_it():
    seen = []
    lane = DigestLane()

    def fail(text):
        raise ValueError(text)

    lane.submit(lambda: seen.append(1))
    lane.submit(lambda: fail("first"))
    for call in (lambda: seen.append(2), lambda: fail("second")):
        with contextlib.suppress(ValueError):
            lane.submit(call)
    with pytest.raises(ValueError, match="first"):
        lane.close()
    assert seen == [1]


def test_an_error_is_raised_by_a_later_submit_too():
    lane = DigestLane()
    lane.submit({}.popitem)
    with pytest.raises(KeyError):
        for _ in range(10_000):
            lane.submit(lambda: None)
    lane.abandon()
    assert not lane._thread.is_alive()


def test_a_full_queue_makes_the_submitter_wait_and_loses_nothing():
    gate, seen = threading.Event(), []
    lane = DigestLane()
    lane.submit(lambda: gate.wait(20))
    submitted = threading.Thread(target=lambda: [lane.submit(lambda: seen.append(1)) for _ in range(40)])
    submitted.start()
    assert lane._calls.maxsize < 40
    gate.set()
    submitted.join(20)
    lane.close()
    assert len(seen) == 40


@pytest.mark.parametrize("closed", [False, True])
def test_abandoning_ends_the_thread(closed):
    lane = DigestLane()
    lane.submit(lambda: None)
    if closed:
        lane.close()
    lane.abandon()
    lane.abandon()
    assert not lane._thread.is_alive()


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(0, 8), max_size=4))
def test_pieces_and_whole_have_their_digests(chunks, cuts):
    digests = SpanDigests()
    expected, piece = [], b""
    for number, chunk in enumerate(chunks):
        digests.update(chunk)
        piece += chunk
        for _ in range(cuts.count(number)):
            digests.cut()
            expected.append(sha(piece))
            piece = b""
    assert digests.pieces == expected
    assert digests.hexdigest() == hashlib.sha256(b"".join(chunks)).hexdigest()
    assert digests.length == sum(map(len, chunks))


@st.composite
def bit_cuts(draw):
    """A stream, its cuts (offset, bits), and the ends of the chunks in which it arrives."""
    data = draw(st.binary(min_size=1, max_size=120))
    offsets = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    cuts = [(offset, draw(st.integers(0, 7)) if offset else 0) for offset in offsets]
    ends = sorted(set(draw(st.lists(st.integers(1, len(data)), max_size=8))) | {len(data)})
    return data, cuts, ends


@settings(max_examples=300)
@given(bit_cuts())
def test_cuts_inside_of_a_byte_give_it_to_both_sides_however_it_arrives(case):
    data, cuts, ends = case
    digests = BitSpanDigests()
    begin = 0
    left = list(cuts)
    for end in ends:
        now = [cut for cut in left if cut[0] <= end]
        left = left[len(now) :]
        digests.update_with_cuts(data[begin:end], now)
        begin = end
    digests.cut()
    bounds = [(0, 0), *cuts]
    expected = []
    for number, (offset, bits) in enumerate(bounds):
        stop = bounds[number + 1][0] if number + 1 < len(bounds) else len(data)
        expected.append(sha(data[offset - (1 if bits else 0) : stop] if stop > offset or bits else b""))
    assert digests.pieces == expected
    assert digests.hexdigest() == hashlib.sha256(data).hexdigest()
