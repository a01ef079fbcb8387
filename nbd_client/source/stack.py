"""Composition of a source: http, retry, cache, readahead, in this order."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockgate.reader import Bytes
from blockgate.retry import RetryPolicy
from nbd_client.errors import SourceRefused
from nbd_client.source.cache import CacheReader
from nbd_client.source.http import HttpLimits, HttpSource
from nbd_client.source.readahead import ReadaheadPolicy, ReadaheadReader
from nbd_client.source.response import Pin
from nbd_client.source.retry import RetryReader


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to read a URL; the sizes are bytes."""

    http: HttpLimits = field(default_factory=HttpLimits)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    readahead: ReadaheadPolicy = field(default_factory=ReadaheadPolicy)
    cache_bytes: int = 64 << 20
    token: str | None = field(default=None, repr=False)
    """A bearer token for the URL's own host and port; a redirect elsewhere does not get it."""


class Source:
    """A ``HotReader`` of a URL, with what an owner wants to know and do besides reading."""

    def __init__(self, http: HttpSource, options: SourceOptions) -> None:
        self._http = http
        self._retry = RetryReader(http, options.retry)
        self._cache = CacheReader(self._retry, options.cache_bytes)
        self._top = ReadaheadReader(self._cache, options.readahead)
        self.peek = self._top.peek
        self.start = self._top.start
        self.read = self._top.read
        self.prefetch = self._top.prefetch

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._http.size

    @property
    def pin(self) -> Pin:
        """What the content was when it was opened."""
        return self._http.pin

    @property
    def cached_bytes(self) -> int:
        """Memory that the cache holds."""
        return self._cache.used_bytes

    @property
    def requests(self) -> int:
        """HTTP requests sent so far."""
        return self._http.requests

    @property
    def connections(self) -> int:
        """HTTP connections opened so far."""
        return self._http.connections

    @property
    def received_bytes(self) -> int:
        """Bytes of the content received so far."""
        return self._retry.received_bytes

    @property
    def retries(self) -> int:
        """Attempts that were repeated."""
        return self._retry.retries

    @property
    def stalls(self) -> int:
        """Attempts that ran out of time."""
        return self._retry.stalls

    def rest(self) -> None:
        """Nobody reads: give memory and connections back."""
        self._cache.clear()
        self._http.trim()

    async def aclose(self) -> None:
        """Close everything."""
        await self._top.aclose()


async def open_source(url: str, options: SourceOptions | None = None, *, pin: Pin | None = None) -> Source:
    """Open ``url`` for reading; with ``pin``, only if it still is that content.

    Raises ``InvalidUrl`` or ``SourceError``. An attempt that may succeed later is not repeated here: whoever
    starts a server wants to know at once.
    """
    options = options or SourceOptions()
    http = await HttpSource.open(url, options.http, pin=pin, token=options.token)
    if not http.size:
        await http.aclose()
        raise SourceRefused(f"{http.shown}: the content is empty")
    return Source(http, options)


__all__ = ["Bytes", "Source", "SourceOptions", "open_source"]
