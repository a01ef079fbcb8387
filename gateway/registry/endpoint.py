"""One host that speaks the registry API: the origin of an image, or a mirror of it.

Theory of operation. An exchange here is one attempt: it answers challenges, follows redirects by hand and remembers
where a blob was found. It does not retry; documents and blobs call ``get`` from inside of a ``Retrier``.

An ``Endpoint`` owns its authenticator, and the memory of a host that ignores ranges. The ``Place`` of a blob belongs
to its reader and has three states::

    unknown ── the host itself has it ──▶ direct
       ├────── a redirect led elsewhere ─▶ elsewhere, until its URL expires
       ◀────── expired, or refused there ──────┘

While one request finds the place again, the others wait for it (``Place.lock``).

What must never happen: Authorization leaves the origin (scheme, host and port) that it is for; a redirect leads from
https down to http, or to an address that is not allowed; an exchange answers challenges without end.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx

from blockgate.retry import parse_retry_after
from gateway.errors import (
    AddressRefused,
    RegistryOverloaded,
    RegistryProtocolError,
    RegistryUnauthorized,
    UpstreamError,
)
from gateway.registry.auth import Authenticator
from gateway.registry.breaker import Breaker, Clock
from gateway.registry.challenge import find_challenge, parse_challenges
from gateway.registry.transport import Answer, Transport, origin_of

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TOO_MANY_REQUESTS, _REQUEST_TIMEOUT, _SERVER_ERROR = 429, 408, 500
# A place whose URL does not say how long it lives is asked for anew after this time, or when it answers 4xx.
_UNKNOWN_LIFETIME_SECONDS = 300.0
_MARGIN_SECONDS = 10.0
_MAX_URLS = 1024
_DIGITS = re.compile(r"[0-9]{1,12}")


@dataclass(slots=True)
class Place:
    """Where an endpoint keeps one blob: itself, or a (signed) URL elsewhere that it redirected to.

    The URL is a secret while it lives: it is in no text and no log.
    """

    url: httpx.URL | None = field(default=None, repr=False)
    expires_at: float = 0.0
    direct: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)


def lifetime_seconds(url: httpx.URL, now: datetime) -> float:
    """How long a signed URL may be used, from the expiry that the common signers write into its query.

    ``X-Amz-Date`` with ``X-Amz-Expires`` (and Google's ``X-Goog-…``), ``Expires`` in seconds since 1970, and
    Azure's ``se``. Less a margin; 300 s where none is found.
    """
    query = {key.lower(): value for key, value in url.params.multi_items()}
    try:
        for signer in ("x-amz", "x-goog"):
            if (date := query.get(f"{signer}-date")) and (seconds := query.get(f"{signer}-expires")):
                signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return (signed + timedelta(seconds=float(seconds)) - now).total_seconds() - _MARGIN_SECONDS
        if (expires := query.get("expires")) and _DIGITS.fullmatch(expires):
            return int(expires) - now.timestamp() - _MARGIN_SECONDS
        if end := query.get("se"):
            moment = datetime.fromisoformat(end)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return (moment - now).total_seconds() - _MARGIN_SECONDS
    except (ValueError, OverflowError):
        pass  # not a form that is known: it may still be good
    return _UNKNOWN_LIFETIME_SECONDS


class Endpoint:
    """``registry`` is the name that credentials and texts use, ``base`` the URL below which ``/v2/`` lies."""

    def __init__(
        self,
        base: httpx.URL,
        registry: str,
        *,
        transport: Transport,
        authenticator: Authenticator,
        breaker: Breaker,
        clock: Clock = time.monotonic,
        range_memory_seconds: float = 60.0,
    ) -> None:
        self.host = registry
        self.breaker = breaker
        self._base, self._origin = base, origin_of(base)
        self._transport, self._authenticator, self._clock = transport, authenticator, clock
        self._urls: dict[str, httpx.URL] = {}
        self._range_memory_seconds = range_memory_seconds
        self._ranges_ignored_until = float("-inf")

    @property
    def ignores_ranges(self) -> bool:
        """Whether the host answered a range with everything a short while ago."""
        return self._clock() < self._ranges_ignored_until

    def remember_ignored_range(self) -> None:
        """The host answered 200 to a range: it is not asked for one for a minute."""
        self._ranges_ignored_until = self._clock() + self._range_memory_seconds

    async def get(
        self,
        path: str,
        repository: str,
        headers: Mapping[str, str],
        *,
        missing: type[UpstreamError],
        place: Place | None = None,
    ) -> Answer:
        """GET ``/v2/REPOSITORY/path``; an answer of status 2xx or 416, which the caller closes.

        ``missing`` is raised for a 404. ``place`` remembers redirects between calls. Raises what
        ``Transport.open`` and ``Authenticator`` raise, ``RegistryUnauthorized``, ``RegistryOverloaded`` or
        ``RegistryProtocolError``.
        """
        url = self._url(f"/v2/{repository}/{path}")
        if place is None or place.direct:
            answer, _ = await self._walk(url, repository, headers)
        else:
            answer = await self._get_from_place(place, url, repository, headers)
        error = self._error(answer, repository, path, missing)
        if error is not None:
            await answer.discard()
            raise error
        return answer

    def _url(self, path: str) -> httpx.URL:
        """Parsed URLs are kept: parsing one costs as much as a tenth of a whole request."""
        if (url := self._urls.get(path)) is None:
            if len(self._urls) >= _MAX_URLS:
                self._urls.clear()
            url = self._urls[path] = self._base.join(path)
        return url

    async def _get_from_place(
        self, place: Place, url: httpx.URL, repository: str, headers: Mapping[str, str]
    ) -> Answer:
        stale = place.url
        if place.url is not None and self._clock() < place.expires_at:
            answer = await self._transport.open("GET", place.url, trusted=False, headers=dict(headers))
            if _is_good(answer.status) or _is_overload(answer.status):
                return answer
            await (
                answer.discard()
            )  # the signature has expired, or the object has moved: ask the registry again
        async with place.lock:
            if place.url is stale and not place.direct:
                answer, final = await self._walk(url, repository, headers)
                if _is_good(answer.status):
                    self._learn(place, final)
                return answer
            fresh = place.url
        if fresh is None:
            answer, _ = await self._walk(url, repository, headers)
            return answer
        return await self._transport.open("GET", fresh, trusted=False, headers=dict(headers))

    def _learn(self, place: Place, final: httpx.URL) -> None:
        if origin_of(final) == self._origin:
            place.direct = True
            return
        place.url = final
        place.expires_at = self._clock() + lifetime_seconds(final, datetime.now(UTC))

    async def _walk(
        self, url: httpx.URL, repository: str, headers: Mapping[str, str]
    ) -> tuple[Answer, httpx.URL]:
        for _ in range(MAX_REDIRECTS + 1):
            if origin_of(url) == self._origin:
                answer = await self._authorised(url, repository, headers)
            else:
                answer = await self._transport.open("GET", url, trusted=False, headers=dict(headers))
            if answer.status not in _REDIRECTS:
                return answer, url
            location = answer.headers.get("location", "")
            await answer.discard()
            url = self._target(url, location, repository)
        raise RegistryProtocolError(f"{self.host}/{repository}: more than {MAX_REDIRECTS} redirects")

    def _target(self, url: httpx.URL, location: str, repository: str) -> httpx.URL:
        where = f"{self.host}/{repository}"
        try:
            target = url.join(location)
        except (httpx.InvalidURL, ValueError) as error:
            raise RegistryProtocolError(f"{where}: a redirect to something that is not a URL") from error
        if not location or target.userinfo:
            raise RegistryProtocolError(f"{where}: a redirect without a usable Location")
        if url.scheme == "https" and target.scheme != "https":
            raise AddressRefused(
                f"{where}: a redirect from https down to {target.scheme[:20]}://{target.host}"
            )
        return target

    async def _authorised(self, url: httpx.URL, repository: str, headers: Mapping[str, str]) -> Answer:
        """One GET to the origin, with at most one new Authorization."""
        authorization = await self._authenticator.header(repository)
        renewed = False
        while True:
            sent = dict(headers)
            if authorization:
                sent["Authorization"] = authorization
            answer = await self._transport.open("GET", url, trusted=True, headers=sent)
            if answer.status != 401:  # noqa: PLR2004
                return answer
            challenges = parse_challenges(answer.headers.get_list("www-authenticate"))
            await answer.discard()
            if renewed:
                self._authenticator.forget(repository)
                basic = authorization is not None and authorization.startswith("Basic ")
                what = (
                    "the user name or password" if basic else "a fresh token; it may not be allowed to pull"
                )
                raise RegistryUnauthorized(f"{self.host}/{repository}: the registry refused {what}")
            if (
                authorization
                and authorization.startswith("Bearer ")
                and not find_challenge(challenges, "bearer")
            ):
                # Some registries answer an expired token with Basic alone. Without Authorization they tell
                # the truth.
                self._authenticator.forget(repository)
                authorization = None
                continue
            authorization = await self._authenticator.answer(challenges, repository, rejected=authorization)
            renewed = True

    def _error(
        self, answer: Answer, repository: str, path: str, missing: type[UpstreamError]
    ) -> UpstreamError | None:
        status = answer.status
        if _is_good(status):
            return None
        by = "" if answer.host == f"{self._origin.host}:{self._origin.port}" else f" (from {answer.host})"
        where = f"{self.host}/{repository}: {path}{by}"
        if status in {404, 410}:
            return missing(f"{where} does not exist")
        if status in {401, 403}:
            return RegistryUnauthorized(f"{where}: access denied (status {status})")
        if _is_overload(status):
            return RegistryOverloaded(
                f"{where}: status {status}",
                retry_after_seconds=parse_retry_after(answer.headers.get("retry-after")),
            )
        return RegistryProtocolError(f"{where}: unexpected status {status}")


def _is_good(status: int) -> bool:
    return 200 <= status < 300 or status == 416  # noqa: PLR2004


def _is_overload(status: int) -> bool:
    return status in {_TOO_MANY_REQUESTS, _REQUEST_TIMEOUT} or status >= _SERVER_ERROR
