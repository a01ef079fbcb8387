"""Decisions about URLs that need no wire: lifetimes of signatures, downgrades, realms."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import AddressRefused, RegistryProtocolError, RegistryUnauthorized
from gateway.registry.auth import Authenticator
from gateway.registry.breaker import Breaker
from gateway.registry.challenge import Challenge
from gateway.registry.credentials import CredentialStore
from gateway.registry.endpoint import Endpoint, Place, lifetime_seconds
from gateway.registry.guard import AllowList
from gateway.registry.observe import SilentObserver
from gateway.registry.transport import Transport, origin_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASE = httpx.URL("https://registry.example")


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=1200&X-Amz-Signature=s", 1190),
        ("X-Amz-Date=20251231T235000Z&X-Amz-Expires=1200", 590),
        ("X-Goog-Date=20260101T000000Z&X-Goog-Expires=100", 90),
        (f"Expires={int(NOW.timestamp()) + 60}&Signature=s", 50),
        ("sv=2021&se=2026-01-01T00%3A01%3A00Z&sig=s", 50),
        ("verify=1767225600-abc", 300),
        ("X-Amz-Date=yesterday&X-Amz-Expires=1200", 300),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=1e999", 300),
        ("Expires=never", 300),
        ("", 300),
    ],
)
def test_the_lifetime_of_a_signed_url_is_read_from_its_query(query, seconds):
    assert lifetime_seconds(httpx.URL(f"https://s.example/b?{query}"), NOW) == pytest.approx(seconds)


@given(
    st.dictionaries(
        st.sampled_from(["Expires", "se", "X-Amz-Date", "X-Amz-Expires", "X-Goog-Date", "X-Goog-Expires"]),
        st.one_of(st.text(max_size=20), st.integers().map(str), st.just("20260101T000000Z"), st.just("nan")),
    )
)
def test_any_query_has_some_lifetime(query):
    seconds = lifetime_seconds(httpx.URL("https://s.example/b", params=query), NOW)
    assert isinstance(seconds, float | int)
    assert seconds == seconds  # noqa: PLR0124 - not NaN


@pytest.fixture
def authenticator():
    return Authenticator(
        origin_of(BASE), "registry.example", transport=Transport(allowed=AllowList()), store=CredentialStore()
    )


@pytest.fixture
def endpoint(authenticator):
    return Endpoint(
        BASE,
        "registry.example",
        transport=Transport(allowed=AllowList()),
        authenticator=authenticator,
        breaker=Breaker("registry.example", observer=SilentObserver()),
    )


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://s.example/b?x=%2F", "https://s.example/b?x=%2F"),
        ("/other", "https://registry.example/other"),
        ("//s.example/b", "https://s.example/b"),
    ],
)
def test_a_location_is_resolved_against_the_request(endpoint, location, target):
    assert str(endpoint._target(BASE.join("/v2/x"), location, "x")) == target


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://s.example/b", AddressRefused),
        ("ftp://s.example/b", AddressRefused),
        ("", RegistryProtocolError),
        ("https://u:p@s.example/", RegistryProtocolError),
        ("https://0177.0.0.1/", RegistryProtocolError),
        ("https://[::1/", RegistryProtocolError),
    ],
)
def test_a_location_that_may_not_be_followed_is_refused(endpoint, location, error):
    with pytest.raises(error, match=r"registry\.example/x"):
        endpoint._target(BASE.join("/v2/x"), location, "x")


def test_credentials_are_not_sent_to_a_realm_without_tls(authenticator):
    challenge = Challenge("bearer", {"realm": "http://auth.example/token"})
    with pytest.raises(RegistryUnauthorized, match="not https"):
        authenticator._realm(challenge, "x")


def test_a_signed_url_is_in_no_representation_of_its_place():
    assert "secret" not in repr(Place(httpx.URL("https://s.example/b?sig=secret")))
