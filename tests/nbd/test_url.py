from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.errors import InvalidUrl
from nbd_client.source.url import Endpoint, parse


@pytest.mark.parametrize(
    ("url", "endpoint", "authority", "path"),
    [
        ("http://h", Endpoint("h", 80, None, False), "h", "/"),
        ("http://h:8080/a?b=c#d", Endpoint("h", 8080, None, False), "h:8080", "/a?b=c"),
        ("https://[::1]:8443/x", Endpoint("::1", 8443, None, True), "[::1]:8443", "/x"),
        (
            "http+unix://%2Frun%2Fa%20b.sock/v1/x",
            Endpoint("", 0, "/run/a b.sock", False),
            "localhost",
            "/v1/x",
        ),
    ],
)
def test_urls_come_apart(url, endpoint, authority, path):
    target = parse(url)
    assert (target.endpoint, target.authority, target.path) == (endpoint, authority, path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h/a",
        "ftp://h/a",
        "http://",
        "http://h:99999/",
        "http://h:x/",
        "http://[::1/",
        "http://h/a b",
        "http://h/\r\nX: y",
        "http://h/ä",
        "http+unix://relative.sock/",
    ],
)
def test_what_cannot_be_served_is_refused(url):
    with pytest.raises(InvalidUrl):
        parse(url)


def test_a_password_is_refused_and_never_shown():
    with pytest.raises(InvalidUrl) as caught:
        parse("http://user:hunter2@h/")
    assert "hunter2" not in str(caught.value)


def test_a_signature_in_the_query_is_never_shown():
    assert parse("https://h/blob?X-Amz-Signature=abc").shown == "https://h/blob"


def test_redirects_may_be_relative_or_go_elsewhere_but_not_down_nor_to_a_socket():
    target = parse("https://h/a/b?c")
    assert target.redirected("../d").url == "https://h/d"
    assert target.redirected("https://other/x").endpoint.host == "other"
    with pytest.raises(InvalidUrl):
        target.redirected("http://h/a/b")
    with pytest.raises(InvalidUrl):
        target.redirected("http+unix://%2Frun%2Fdocker.sock/")


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_an_invalid_url(text):
    for url in (text, "http://" + text):
        try:
            target = parse(url)
        except InvalidUrl:
            continue
        assert target.path.startswith("/")
        assert target.path.isascii()
        assert not set(target.path + target.authority) & set("\r\n \t")
