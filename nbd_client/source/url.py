"""URLs that can be served. PURE.

``http://``, ``https://`` and ``http+unix://``, whose authority is the percent-encoded path of a unix socket
(``http+unix://%2Frun%2Fgateway.sock/v1/devices/a/data``).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

from nbd_client.errors import InvalidUrl

_PORTS = {"http": 80, "https": 443, "http+unix": 0}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect: a host and port, or a unix socket; and whether to speak TLS."""

    host: str
    port: int
    unix_path: str | None
    tls: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL: ``path`` is the request target (with query), ``authority`` the Host field."""

    url: str
    endpoint: Endpoint
    authority: str
    path: str

    @property
    def shown(self) -> str:
        """The URL as it may be printed: a query may hold a signature, so it is left out."""
        return self.url.split("?", 1)[0]

    def beside(self, path: str) -> Target | None:
        """Another path of the same server, or None when ``path`` is no absolute path of one (RFC 9110 section 8.7)."""
        if not path.startswith("/") or path.startswith("//") or not path.isascii() or not path.isprintable():
            return None
        parts = urlsplit(self.url)
        return Target(f"{parts.scheme}://{parts.netloc}{path}", self.endpoint, self.authority, path)

    def redirected(self, location: str) -> Target:
        """Follow a Location field. Raises ``InvalidUrl``, also for a step down from TLS."""
        target = parse(urljoin(self.url, location))
        if target.endpoint.unix_path is not None:
            raise InvalidUrl(f"{self.shown} redirects to a unix socket")
        if self.endpoint.tls and not target.endpoint.tls:
            raise InvalidUrl(f"{self.shown} redirects from https to http; use its https address")
        return target


def parse(url: str) -> Target:
    """Take a URL apart. Raises ``InvalidUrl`` naming what is wrong with it, never showing a password."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidUrl("the URL has a space, a control or a non-ASCII character; percent-encode it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidUrl("the URL's port or address cannot be understood") from error
    if parts.scheme not in _PORTS:
        raise InvalidUrl(f"{parts.scheme or 'no'} scheme: only http, https and http+unix URLs can be served")
    if "@" in parts.netloc:
        raise InvalidUrl("the URL holds a user name; credentials in URLs end up in logs, so it is refused")
    if not parts.hostname:
        raise InvalidUrl("the URL names no host")
    path = parts.path or "/"
    if parts.query:
        path += "?" + parts.query
    clean = parts._replace(fragment="").geturl()
    if parts.scheme == "http+unix":
        socket_path = unquote(parts.netloc)
        if not socket_path.startswith("/"):
            raise InvalidUrl("an http+unix URL begins with the percent-encoded absolute path of a socket")
        return Target(clean, Endpoint("", 0, socket_path, tls=False), "localhost", path)
    endpoint = Endpoint(parts.hostname, port or _PORTS[parts.scheme], None, tls=parts.scheme == "https")
    return Target(clean, endpoint, parts.netloc, path)
