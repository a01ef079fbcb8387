"""What goes over the wire, and what the environment may not do to it."""

from __future__ import annotations

import httpx
import pytest

from gateway.errors import AddressRefused, RegistryProtocolError
from gateway.registry.guard import AllowList
from gateway.registry.transport import Origin, Transport, origin_of
from tests.support import faultregistry as faults


@pytest.fixture
async def transport():
    transport = Transport(allowed=AllowList(["127.0.0.1"]))
    yield transport
    await transport.aclose()


def url(registry: faults.FaultRegistry, target: str) -> httpx.URL:
    return httpx.URL(f"http://{registry.host}{target}")


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Example.com/x", Origin("https", "example.com", 443)),
        ("http://example.com.:8080", Origin("http", "example.com", 8080)),
        ("http://[2001:DB8:0::1]/", Origin("http", "2001:db8::1", 80)),
    ],
)
def test_an_origin_is_scheme_host_and_port(text, origin):
    assert origin_of(httpx.URL(text)) == origin


@pytest.mark.parametrize("text", ["ftp://x/", "/path", "", "http://[fe80::1%25eth0]/", "http://exa mple/"])
def test_what_has_no_usable_origin_is_refused(text):
    with pytest.raises(AddressRefused):
        origin_of(httpx.URL(text))


async def test_a_url_is_sent_as_it_is_written(registry, transport):
    target = "/storage/a%2Fb?X-Amz-Credential=AK%2F2026%2Fus&sig=a%2Bb%3D&se=2026-01-01T00%3A00%3A00Z&p=%7E"
    answer = await transport.open("GET", url(registry, target), trusted=True)
    await answer.discard()
    assert registry.requests[0].target == target


async def test_proxies_and_netrc_of_the_environment_are_not_used(registry, transport, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pw\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for trusted in (True, False):
        answer = await transport.open("GET", url(registry, "/v2/"), trusted=trusted)
        assert answer.status == 200
        await answer.discard()
    assert all("authorization" not in request.headers for request in registry.requests)


async def test_cookies_and_redirects_are_left_alone(registry, transport):
    fault = faults.status(302, location="/v2/", set_cookie="track=1; Path=/")
    registry.inject(fault, times=2, matching=faults.any_request)
    for _ in range(2):
        answer = await transport.open("GET", url(registry, "/v2/x"), trusted=True)
        assert answer.status == 302
        await answer.discard()
    assert [request.path for request in registry.requests] == ["/v2/x", "/v2/x"]
    assert all("cookie" not in request.headers for request in registry.requests)


async def test_bodies_are_not_decompressed(registry, transport):
    registry.inject(faults.gzip_encoded, matching=faults.any_request)
    answer = await transport.open("GET", url(registry, "/v2/"), trusted=True)
    body = await answer.body(1000)
    await answer.aclose()
    assert body is not None
    assert body[:2] == b"\x1f\x8b"


async def test_a_body_beyond_its_limit_is_left_at_once(registry, transport):
    registry.inject(faults.oversize(50_000_000), matching=faults.any_request)
    answer = await transport.open("GET", url(registry, "/v2/"), trusted=True)
    assert await answer.body(1_000_000) is None
    assert answer.received_bytes < 2_000_000
    await answer.aclose()


async def test_the_two_pools_share_no_connection(registry):
    transport = Transport(allowed=AllowList())
    answer = await transport.open("GET", url(registry, "/v2/"), trusted=True)
    await answer.discard()
    for host in (registry.host, registry.host.replace("127.0.0.1", "localhost")):
        with pytest.raises(AddressRefused):
            await transport.open("GET", httpx.URL(f"http://{host}/v2/"), trusted=False)
    await transport.aclose()
    assert registry.count() == 1


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "127.1", "0x7f.1", "127.0.0.1.", "[::ffff:127.0.0.1]"]
)
async def test_odd_spellings_of_loopback_are_refused(registry, host):
    transport = Transport(allowed=AllowList())
    port = registry.host.rpartition(":")[2]
    with pytest.raises((AddressRefused, RegistryProtocolError)):
        await transport.open("GET", httpx.URL(f"http://{host}:{port}/v2/"), trusted=False)
    await transport.aclose()
    assert registry.requests == []


async def test_an_unwanted_short_body_leaves_its_connection_usable(registry, transport):
    for _ in range(3):
        answer = await transport.open("GET", url(registry, "/v2/none"), trusted=True)
        await answer.discard()
    assert registry.connections_accepted == 1


async def test_an_unwanted_long_body_is_cut_off(registry, transport):
    registry.inject(faults.oversize(50_000_000), matching=faults.any_request)
    answer = await transport.open("GET", url(registry, "/v2/"), trusted=True)
    await answer.discard()
    assert answer.received_bytes == 0
    answer = await transport.open("GET", url(registry, "/v2/"), trusted=True)
    await answer.discard()
    assert registry.connections_accepted == 2
