"""Reads from memory are answered on a shorter way: nobody can tell."""

from __future__ import annotations

import random

import pytest

from tests.support.inprocess import BASE, TOKENS, UPPER, bearer, running, token_entries

URL = "/v1/devices/base/data"
RANGES = [
    (start, min(len(BASE), start + length) - 1)
    for start, length in [
        (0, 1),
        (0, len(BASE)),
        (len(BASE) - 1, 1),
        *((random.Random(n).randrange(len(BASE) - 4096), 4096) for n in range(20)),
    ]
]


@pytest.fixture
def short_answers(gateway, monkeypatch):
    """What the short way answered, request by request."""
    endpoint = gateway.app.edge._data
    peek, given = endpoint.peek, []

    def watched(scope, name, *, content):
        given.append(peek(scope, name, content=content))
        return given[-1]

    monkeypatch.setattr(endpoint, "peek", watched)
    return given


async def test_both_ways_give_the_same_answer(gateway, short_answers):
    await gateway.layer()
    etag = (await gateway.client.head(URL)).headers["etag"]
    for first, last in RANGES:
        asked = {"range": f"bytes={first}-{last}"}
        # A precondition that holds changes nothing but the way.
        long = await gateway.client.get(URL, headers=asked | {"if-match": etag})
        assert short_answers[-1] is None
        short = await gateway.client.get(URL, headers=asked)
        assert short_answers[-1] is not None
        assert short.status_code == long.status_code == 206
        assert short.headers.raw == long.headers.raw
        assert short.content == long.content == BASE[first : last + 1]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"range": "bytes=0-"},
        {"range": "bytes=-1"},
        {"range": "bytes=0-1,5-6"},
        {"range": "bytes=5-4"},
        {"range": f"bytes=0-{len(BASE) * 2}"},
        {"range": "bytes=0-1", "if-range": '"x"'},
        {"range": "bytes=0-1", "if-none-match": '"x"'},
        {"range": "bytes=0-1", "origin": "https://example.org"},
        [("range", "bytes=0-1"), ("range", "bytes=2-3")],
    ],
)
async def test_anything_unusual_goes_the_long_way(gateway, short_answers, headers):
    await gateway.layer()
    await gateway.client.get(URL)
    await gateway.client.get(URL, headers=headers)
    assert short_answers[-1] is None


async def test_nothing_is_fetched_or_waited_for_on_the_short_way(gateway, short_answers):
    await gateway.layer()
    await gateway.client.delete("/v1/cache")
    cold = await gateway.client.get(URL, headers={"range": "bytes=0-9"})
    assert short_answers[-1] is None
    hot = await gateway.client.get(URL, headers={"range": "bytes=0-9"})
    assert short_answers[-1] is not None
    assert cold.content == hot.content == BASE[:10]


async def test_reads_across_layers_and_their_padding_are_right_from_memory_too(gateway):
    await gateway.add("whole")
    whole = (await gateway.client.get("/v1/devices/whole/data")).content
    assert BASE in whole
    assert UPPER in whole
    edges = {0, len(whole), *(whole.index(tar) + at for tar in (BASE, UPPER) for at in (0, len(tar)))}
    for edge in edges:
        start, stop = max(0, edge - 700), min(len(whole), edge + 700)
        answer = await gateway.client.get(
            "/v1/devices/whole/data", headers={"range": f"bytes={start}-{stop - 1}"}
        )
        assert answer.content == whole[start:stop]


async def test_the_short_way_asks_for_tokens_and_counts_requests(tmp_path, images):
    async with running(tmp_path, images, tokens=token_entries(**TOKENS)) as gateway:
        gateway.client.headers.update(bearer(TOKENS["admin"]))
        await gateway.layer()
        await gateway.client.get(URL)
        node = bearer(TOKENS["node"]) | {"range": "bytes=0-9"}
        counts = gateway.app.edge._counts
        before = counts.ranges.count
        assert (await gateway.client.get(URL, headers=node)).content == BASE[:10]
        assert counts.ranges.count == before + 1
        for token in ("wrong", TOKENS["metrics"]):
            refused = await gateway.client.get(URL, headers=bearer(token) | {"range": "bytes=0-9"})
            assert refused.status_code in (401, 403)
            assert BASE[:10] not in refused.content
