"""The bytes of a device by their entity tag: an address that may be kept for ever, and what unproven bytes say of themselves."""

from __future__ import annotations

import asyncio
import email
import email.policy

import pytest

from blockgate.names import content_path
from tests.support.inprocess import BASE, BASE_BLOB, UPPER
from tests.support.layers import sha256
from tests.support.zinfo_tables import build as build_table
from tests.support.zinfo_tables import encode

NAMED = "/v1/devices/base/data"
FOR_EVER = "public, max-age=31536000, immutable, no-transform"


@pytest.fixture
async def device(gateway):
    return await gateway.layer()


@pytest.fixture
def url(device):
    return content_path(device["etag"])


async def test_the_data_url_of_a_ready_device_is_its_contents_address(gateway, device, url):
    assert device["data_url"] == f"http://gateway{url}"
    answer = await gateway.client.get(device["data_url"])
    assert (answer.status_code, answer.content) == (200, BASE)
    (listed,) = (await gateway.client.get("/v1/devices")).json()["devices"]
    assert listed["data_url"] == device["data_url"]


async def test_before_it_is_ready_the_data_url_is_by_name(gateway):
    answer = await gateway.put("base", layout="tar", layer={"index": 0})
    assert answer.json()["data_url"] == f"http://gateway{NAMED}"
    await gateway.settle()


async def test_every_answer_may_be_kept_for_ever_and_names_its_tag(gateway, device, url):
    answers = [
        await gateway.client.get(url),
        await gateway.client.head(url),
        await gateway.client.get(url, headers={"range": "bytes=0-9"}),
        await gateway.client.get(url, headers={"range": "bytes=0-9,20-29"}),
        await gateway.client.get(url, headers={"if-none-match": device["etag"]}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 206, 206, 304]
    for answer in answers:
        assert answer.headers["etag"] == device["etag"]
        assert answer.headers["cache-control"] == FOR_EVER
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["blockgate-verification"] == "verified"
        assert "content-location" not in answer.headers
    assert answers[1].headers["content-length"] == str(len(BASE))


async def test_the_bytes_are_those_of_the_name(gateway, url):
    for headers in (
        {},
        {"range": "bytes=100-70000"},
        {"range": "bytes=-1"},
        {"range": f"bytes={len(BASE) - 1}-"},
    ):
        for _ in range(2):  # cold, then from memory
            named = await gateway.client.get(NAMED, headers=headers)
            found = await gateway.client.get(url, headers=headers)
            assert found.status_code == named.status_code
            assert found.content == named.content
            assert found.headers.get("content-range") == named.headers.get("content-range")


async def test_several_ranges_parse_back_from_multipart(gateway, url):
    answer = await gateway.client.get(url, headers={"range": "bytes=0-99,70000-70999"})
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP)
    parts = [(part["content-range"], part.get_payload(decode=True)) for part in message.iter_parts()]
    assert parts == [
        (f"bytes 0-99/{len(BASE)}", BASE[:100]),
        (f"bytes 70000-70999/{len(BASE)}", BASE[70000:71000]),
    ]


async def test_a_range_behind_the_end_is_416_and_a_stale_if_match_412(gateway, url):
    answer = await gateway.client.get(url, headers={"range": f"bytes={len(BASE)}-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(BASE)}")
    assert (await gateway.client.get(url, headers={"if-match": '"x"'})).status_code == 412


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "tag",
    [
        "0" * 40,
        "x",
        "x" * 5000,
        "%00",
        "%C3%A4",
        "a%22b",
        "%22",
        "..",
        "0" * 40 + "-unproven-" + "0" * 12,
        "*",
    ],
)
async def test_a_tag_that_no_device_has_is_404(gateway, device, method, tag):
    answer = await gateway.client.request(method, f"/v1/content/{tag}/data")
    assert answer.status_code == 404
    if method == "GET" and tag != "..":
        assert answer.json()["code"] == "content_not_found"


async def test_the_tag_is_written_without_its_quotes(gateway, device):
    quoted = device["etag"].replace('"', "%22")
    assert (await gateway.client.get(f"/v1/content/{quoted}/data")).status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/content//data", "/v1/content/data", "/v1/content/a/b/data", "/v1/content/a"]
)
async def test_another_path_is_no_route(gateway, path):
    answer = await gateway.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")


async def test_content_stays_while_any_device_has_it_and_no_longer(gateway, device, url):
    assert (await gateway.layer("twin"))["etag"] == device["etag"]
    for name in ("base", "twin"):
        assert (await gateway.client.get(url)).content == BASE
        assert (await gateway.client.delete(f"/v1/devices/{name}")).status_code == 204
    for _ in range(2):
        assert (await gateway.client.get(url)).json()["code"] == "content_not_found"


async def test_a_name_that_is_given_anew_leads_to_the_new_content(gateway, device, url):
    await gateway.client.delete("/v1/devices/base")
    await gateway.layer(index=1)
    answer = await gateway.client.get(NAMED, headers={"if-range": device["etag"], "range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, UPPER)
    assert answer.headers["content-location"] != url
    assert (await gateway.client.get(url)).status_code == 404


class Held:
    """Lets no layer be passed over until it is told to."""

    def __init__(self, gateway, monkeypatch) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        parts = gateway.services.registrar._parts
        self._layer = parts.layer
        monkeypatch.setattr(parts, "layer", self._wait)

    async def _wait(self, *arguments):
        self.begun.set()
        await self.go.wait()
        return await self._layer(*arguments)


async def upload_table(gateway) -> str:
    """A right table of the base layer."""
    built = build_table(BASE_BLOB, 100_000)
    zinfo = encode(zip(built.points, built.windows, strict=True), 100_000)
    assert (await gateway.client.put(f"/v1/artifacts/{sha256(zinfo)}", content=zinfo)).status_code == 201
    return sha256(zinfo)


async def test_unproven_bytes_say_so_and_are_kept_by_nobody_until_they_are_proven(gateway, monkeypatch):
    zinfo = await upload_table(gateway)
    held = Held(gateway, monkeypatch)
    await gateway.put("base", layout="tar", layer={"index": 0}, zinfo=zinfo, verify="background")
    async with asyncio.timeout(30):
        await held.begun.wait()
    device = (await gateway.client.get("/v1/devices/base")).json()
    assert (device["state"], device["verification"]) == ("ready", "verifying")
    tag = device["etag"].strip('"')
    assert tag[40:] == f"-unproven-{zinfo.removeprefix('sha256:')[:12]}"
    unproven = content_path(tag)
    for url in (NAMED, unproven):
        for headers in ({}, {"range": "bytes=5-70000"}):
            answer = await gateway.client.get(url, headers=headers)
            assert answer.content == (BASE[5:70001] if headers else BASE)
            assert answer.headers["etag"] == f'"{tag}"'
            assert answer.headers["cache-control"] == "no-store, no-transform"
            assert answer.headers["blockgate-verification"] == "unverified"
    assert (await gateway.client.head(NAMED)).headers["content-location"] == unproven
    # Nobody has proven anything, so the proven tag is nobody's.
    assert (await gateway.client.get(content_path(tag[:40]))).status_code == 404

    held.go.set()
    await gateway.settle()
    proven = await gateway.client.get(NAMED)
    assert (proven.content, proven.headers["etag"]) == (BASE, f'"{tag[:40]}"')
    assert proven.headers["blockgate-verification"] == "verified"
    assert proven.headers["content-location"] == content_path(tag[:40])
    # A node that pinned the old address reads on there, under the tag that it pinned.
    answer = await gateway.client.get(unproven, headers={"if-match": f'"{tag}"', "range": "bytes=0-9"})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (206, BASE[:10], f'"{tag}"')
    assert answer.headers["blockgate-verification"] == "verified"


async def test_where_the_blob_is_proven_already_background_is_verified_at_once(gateway, device, monkeypatch):
    held = Held(gateway, monkeypatch)
    held.go.set()
    zinfo = await upload_table(gateway)
    other = await gateway.add("other", layout="tar", layer={"index": 0}, zinfo=zinfo, verify="background")
    assert (other["state"], other["verification"], other["etag"]) == ("ready", "verified", device["etag"])
