"""The data endpoint end to end: ranges, preconditions and headers of RFC 9110."""

from __future__ import annotations

import email
import email.policy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockgate.names import content_path
from tests.support.inprocess import BASE, UPPER, running

TRUTH = BASE
SIZE = len(BASE)
URL = "/v1/devices/base/data"


@pytest.fixture
async def client(gateway):
    await gateway.layer()
    return gateway.client


@pytest.fixture
async def etag(client):
    return (await client.head(URL)).headers["etag"]


async def ranged(client, value, **headers):
    return await client.get(URL, headers={"range": value, **headers})


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-511", 0, 512),
        ("bytes=65535-65536", 65535, 65537),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        ("bytes=-512", SIZE - 512, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=100-{SIZE * 10}", 100, SIZE),
        ("bytes=100-9999999999999999999", 100, SIZE),
        ("bytes=0-99,100-199", 0, 200),
        ("bytes=0-,20-30", 0, SIZE),
        (f"bytes=0-9,{SIZE}-", 0, 10),
    ],
)
async def test_one_range_gives_206_and_exactly_these_bytes(client, value, start, stop):
    for _ in range(2):  # cold, then from memory
        answer = await ranged(client, value)
        assert answer.status_code == 206
        assert answer.content == TRUTH[start:stop]
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    "value",
    [
        "bits=0-1",
        "bytes=",
        "bytes=5-1",
        "bytes=a-b",
        "bytes=1_0-1_2",
        "bytes=+1-+3",
        "bytes=0-1-2",
        "bytes",
        "bytes=-",
        "",
    ],
)
async def test_a_malformed_range_or_unknown_unit_is_ignored(client, value):
    answer = await ranged(client, value)
    assert answer.status_code == 200
    assert answer.content == TRUTH
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("value", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE}-{SIZE + 9}"])
async def test_a_range_behind_the_end_is_416_and_tells_the_size(client, value):
    answer = await ranged(client, value)
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"
    assert answer.json()["code"] == "range_not_satisfiable"


async def test_too_many_ranges_are_416(client):
    assert (
        await ranged(client, "bytes=" + ",".join(f"{i * 10}-{i * 10}" for i in range(16)))
    ).status_code == 206
    answer = await ranged(client, "bytes=" + ",".join(f"{i * 10}-{i * 10}" for i in range(17)))
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


async def test_several_ranges_parse_back_from_multipart(client):
    answer = await ranged(client, "bytes=0-99,70000-70999,-10")
    assert answer.status_code == 206
    assert "content-range" not in answer.headers
    assert int(answer.headers["content-length"]) == len(answer.content)
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP)
    parts = [(part["content-range"], part.get_payload(decode=True)) for part in message.iter_parts()]
    assert parts == [
        (f"bytes 0-99/{SIZE}", TRUTH[:100]),
        (f"bytes 70000-70999/{SIZE}", TRUTH[70000:71000]),
        (f"bytes {SIZE - 10}-{SIZE - 1}/{SIZE}", TRUTH[-10:]),
    ]
    assert {part.get_content_type() for part in message.iter_parts()} == {"application/octet-stream"}


async def test_without_a_range_the_device_comes_whole(client):
    answer = await client.get(URL)
    assert answer.status_code == 200
    assert answer.content == TRUTH
    assert answer.headers["content-length"] == str(SIZE)


@pytest.mark.parametrize("value", ["bytes=0-0", "bytes=999999999-", "nonsense"])
async def test_head_ignores_range_and_tells_the_full_length(client, value):
    answer = await client.head(URL, headers={"range": value})
    assert answer.status_code == 200
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.content == b""
    assert "content-range" not in answer.headers


async def test_two_range_lines_are_400(client):
    answer = await client.get(URL, headers=[("range", "bytes=0-1"), ("range", "bytes=4-5")])
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_the_headers_of_every_answer(client, etag):
    answers = [
        await client.get(URL),
        await client.head(URL),
        await ranged(client, "bytes=0-9"),
        await ranged(client, "bytes=0-9,20-29"),
        await client.get(URL, headers={"if-none-match": etag}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 206, 206, 304]
    for answer in answers:
        assert answer.headers["etag"] == etag
        assert answer.headers["accept-ranges"] == "bytes"
        # The name can be given to other content, so it is asked for anew; what it has now has an address of its own.
        assert answer.headers["cache-control"] == "no-cache, no-transform"
        assert answer.headers["content-location"] == content_path(etag)
        assert answer.headers["blockgate-verification"] == "verified"
        assert "content-encoding" not in answer.headers
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert etag.startswith('"')
    assert not answers[-1].content
    assert "content-length" not in answers[-1].headers


@pytest.mark.parametrize("encoding", ["gzip", "br, zstd, gzip;q=1", "*", "identity;q=0"])
async def test_bytes_are_never_encoded(client, encoding):
    answer = await client.get(URL, headers={"accept-encoding": encoding, "range": "bytes=0-99"})
    assert "content-encoding" not in answer.headers
    assert answer.content == TRUTH[:100]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_if_none_match_gives_304_even_with_a_range(client, etag, method):
    for tag in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = await client.request(method, URL, headers={"if-none-match": tag, "range": "bytes=0-9"})
        assert answer.status_code == 304
    answer = await client.request(method, URL, headers={"if-none-match": '"x"', "range": "bytes=0-9"})
    assert answer.status_code == (206 if method == "GET" else 200)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_stale_if_match_is_412(client, etag, method):
    for tag, status in ((etag, 200), ("*", 200), (f'"x", {etag}', 200), ('"x"', 412), (f"W/{etag}", 412)):
        answer = await client.request(method, URL, headers={"if-match": tag})
        assert answer.status_code == status
    answer = await client.get(URL, headers={"if-match": '"x"', "if-none-match": etag})
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")


async def test_if_range_decides_between_range_and_whole(client, etag):
    assert (await ranged(client, "bytes=0-9", **{"if-range": etag})).status_code == 206
    for stale in ('"x"', f"W/{etag}", "Tue, 24 Nov 2026 07:00:00 GMT"):
        answer = await ranged(client, "bytes=0-9", **{"if-range": stale})
        assert answer.status_code == 200
        assert answer.content == TRUTH
    assert (await ranged(client, f"bytes={SIZE}-", **{"if-range": '"x"'})).status_code == 200


async def test_preconditions_on_several_lines_are_one_list(client, etag):
    answer = await client.get(URL, headers=[("if-none-match", '"x"'), ("if-none-match", etag)])
    assert answer.status_code == 304


async def test_the_entity_tag_is_the_same_on_every_replica(tmp_path, images, etag):
    async with running(tmp_path / "replica", images) as other:
        assert (await other.layer())["etag"] == etag
        assert (await other.layer("upper", 1))["etag"] != etag


async def test_a_device_of_no_bytes_is_empty(gateway):
    device = await gateway.add("empty", "empty", layout="tar", layer={"index": 0})
    assert (device["state"], device["size"]) == ("ready", 0)
    url = "/v1/devices/empty/data"
    for method in ("GET", "HEAD"):
        answer = await gateway.client.request(method, url)
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
    answer = await gateway.client.get(url, headers={"range": "bytes=0-0"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */0")


async def test_pages_of_configured_origins_only_may_read(tmp_path, images):
    async with running(tmp_path, images, cors_origins=("https://ours.example",)) as gateway:
        await gateway.layer()
        answer = await gateway.client.get(
            URL, headers={"origin": "https://ours.example", "range": "bytes=0-9"}
        )
        assert answer.headers["access-control-allow-origin"] == "https://ours.example"
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"content-range", "content-location", "accept-ranges", "etag", "content-length"} <= set(
            exposed
        )
        # A cache between must not give one origin's answer to another.
        assert answer.headers["vary"] == "Origin"
        for headers in ({"origin": "https://other.example"}, {}):
            other = await gateway.client.get(URL, headers=headers)
            assert "access-control-allow-origin" not in other.headers
            assert other.headers["vary"] == "Origin"
        missing = await gateway.client.get(
            "/v1/devices/none/data", headers={"origin": "https://ours.example"}
        )
        assert missing.status_code == 404
        assert missing.headers["access-control-allow-origin"] == "https://ours.example"


async def test_a_whole_image_is_its_metadata_and_its_layers(gateway):
    device = await gateway.add("whole")
    assert device["state"] == "ready", device
    assert [s["kind"] for s in device["segments"] if s["kind"] != "zero"] == ["metadata", "gzip", "tar"]
    answer = await gateway.client.get("/v1/devices/whole/data")
    assert len(answer.content) == device["size"]
    for segment, tar in zip(
        (s for s in device["segments"] if s["kind"] in ("gzip", "tar")), (BASE, UPPER), strict=True
    ):
        assert answer.content[segment["offset"] :][: len(tar)] == tar
    assert int.from_bytes(answer.content[1024:1028], "little") == 0xE0F5E1E2
    assert device["contents"]["files"] == 4
    assert device["image_config"]["Cmd"] == ["/bin/sh"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, SIZE + 10), st.integers(0, 2000)), min_size=1, max_size=5),
    st.booleans(),
)
async def test_any_ranges_give_what_they_ask_for(client, wanted, suffix):
    specs = [f"{start}-{start + length}" for start, length in wanted] + (["-7"] if suffix else [])
    answer = await ranged(client, "bytes=" + ",".join(specs))
    expected = set()
    for start, length in wanted:
        expected.update(range(min(start, SIZE), min(start + length + 1, SIZE)))
    if suffix:
        expected.update(range(SIZE - 7, SIZE))
    if not expected:
        assert answer.status_code == 416
        return
    assert answer.status_code == 206
    if "content-range" in answer.headers:
        found = [(answer.headers["content-range"], answer.content)]
    else:
        head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP)
        found = [(part["content-range"], part.get_payload(decode=True)) for part in message.iter_parts()]
    got = set()
    for described, data in found:
        first, last = map(int, described.removeprefix("bytes ").partition("/")[0].split("-"))
        assert data == TRUTH[first : last + 1]
        got.update(range(first, last + 1))
    assert got == expected
