"""Authorization for one registry host: Basic, or Bearer tokens fetched, kept and renewed.

The protocol is distribution's token specification. The challenge of the real request is what counts; no URL
is guessed. What was learnt is used again until its token expires on the monotonic clock or the registry
refuses it; renewal is single-flight per repository.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from blockgate.retry import parse_retry_after
from gateway.errors import RegistryOverloaded, RegistryProtocolError, RegistryUnauthorized, UpstreamError
from gateway.registry.breaker import Clock
from gateway.registry.challenge import Challenge, find_challenge
from gateway.registry.credentials import Credentials, CredentialStore
from gateway.registry.transport import Answer, Origin, Transport, origin_of

_TOKEN_LIMIT_BYTES = 256 * 1024
# The token spec: a token without expires_in lives for 60 seconds.
_DEFAULT_LIFETIME_SECONDS = 60.0
_MAX_LIFETIME_SECONDS = 24 * 3600.0
# Renew this long before the end, so that a token does not expire on its way.
_MARGIN_SECONDS = 5.0
_CLIENT_ID = "blockgate"


@dataclass(slots=True)
class _Grant:
    """An Authorization value in use, None for "none needed so far", and when it must be renewed."""

    header: str | None
    expires_at: float
    challenge: Challenge


class Authenticator:
    """Answers the challenges of one origin with ``registry``'s credentials, or those called ``name``."""

    def __init__(
        self,
        origin: Origin,
        registry: str,
        *,
        transport: Transport,
        store: CredentialStore,
        name: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._origin, self._registry, self._name = origin, registry, name
        self._transport, self._store, self._clock = transport, store, clock
        self._grants: dict[str, _Grant] = {}
        self._revision: object = None
        self._locks: dict[str, asyncio.Lock] = {}

    async def header(self, repository: str) -> str | None:
        """The Authorization value to send, renewed if it has expired; None before any challenge."""
        revision = self._store.revision(self._name)
        if revision != self._revision:
            # The named credentials were changed or removed: what they opened is closed.
            self._grants.clear()
            self._revision = revision
        grant = self._grants.get(repository)
        if grant is None:
            return None
        if grant.expires_at > self._clock():
            return grant.header
        return await self.answer([grant.challenge], repository, rejected=grant.header)

    def forget(self, repository: str) -> None:
        """Drop what is known: the next request goes out without Authorization and is challenged anew."""
        self._grants.pop(repository, None)

    async def answer(self, challenges: Sequence[Challenge], repository: str, *, rejected: str | None) -> str:
        """A new Authorization value for the challenges of a 401, which had carried ``rejected``.

        Raises ``RegistryUnauthorized`` where nothing can be answered, and what the exchange with the token
        server raises.
        """
        lock = self._locks.setdefault(repository, asyncio.Lock())
        async with lock:
            current = self._grants.get(repository)
            if (
                current
                and current.header
                and current.header != rejected
                and current.expires_at > self._clock()
            ):
                return current.header  # another request has renewed it in the meantime
            revision = self._store.revision(self._name)
            credentials = await self._store.look_up(self._registry, repository, self._name)
            if bearer := find_challenge(challenges, "bearer"):
                header, lifetime = await self._fetch_token(bearer, repository, credentials)
                grant = _Grant(header, self._clock() + lifetime, bearer)
            elif basic := find_challenge(challenges, "basic"):
                grant = _Grant(self._basic(credentials, repository, rejected), float("inf"), basic)
            else:
                asked = ", ".join(sorted({challenge.scheme[:20] for challenge in challenges})) or "nothing"
                raise RegistryUnauthorized(
                    f"{self._registry}/{repository}: access denied, and the registry offers {asked}; "
                    "Basic and Bearer are understood"
                )
            # What was opened with credentials that were changed meanwhile serves this request and no other.
            if revision == self._store.revision(self._name):
                self._grants[repository] = grant
            return grant.header or ""

    def _basic(self, credentials: Credentials | None, repository: str, rejected: str | None) -> str:
        header = credentials.basic() if credentials else None
        if header is None:
            raise RegistryUnauthorized(
                f"{self._registry}/{repository}: a user name and a password are wanted, and none are known; "
                "log in with docker or podman, or configure credentials"
            )
        if header == rejected:
            self.forget(repository)
            raise RegistryUnauthorized(
                f"{self._registry}/{repository}: the registry refused the user name or password"
            )
        return header

    async def _fetch_token(
        self, challenge: Challenge, repository: str, credentials: Credentials | None
    ) -> tuple[str, float]:
        realm = self._realm(challenge, repository)
        scope = challenge.parameters.get("scope") or f"repository:{repository}:pull"
        service = challenge.parameters.get("service", "")
        parameters = {"service": service, "scope": scope} if service else {"scope": scope}
        trusted = origin_of(realm) == self._origin
        if credentials and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "client_id": _CLIENT_ID,
                "refresh_token": credentials.identity_token.get_secret_value(),
                **parameters,
            }
            answer = await self._transport.open("POST", realm, trusted=trusted, form=form)
        else:
            basic = credentials.basic() if credentials else None
            headers = {"Authorization": basic} if basic else {}
            url = realm.copy_merge_params(parameters)
            answer = await self._transport.open("GET", url, trusted=trusted, headers=headers)
        try:
            return await self._read_token(answer, repository, anonymous=credentials is None)
        finally:
            await answer.aclose()

    def _realm(self, challenge: Challenge, repository: str) -> httpx.URL:
        where = f"{self._registry}/{repository}"
        try:
            realm = httpx.URL(challenge.parameters.get("realm", ""))
        except (httpx.InvalidURL, ValueError) as error:
            raise RegistryProtocolError(f"{where}: the challenge's realm is not a URL") from error
        if not realm.host or realm.userinfo:
            raise RegistryProtocolError(f"{where}: the challenge's realm is not a usable URL")
        if self._origin.scheme == "https" and realm.scheme != "https":
            raise RegistryUnauthorized(
                f"{where}: the token server {realm.host} is not https; nothing is sent there"
            )
        return realm

    async def _read_token(self, answer: Answer, repository: str, *, anonymous: bool) -> tuple[str, float]:
        where = f"{self._registry}/{repository}: token server {answer.host}"
        if answer.status in {401, 403}:
            hint = "no credentials are known for it" if anonymous else "it refused the credentials"
            raise RegistryUnauthorized(f"{where}: access denied; {hint}")
        if answer.status == 429 or answer.status >= 500:  # noqa: PLR2004
            raise RegistryOverloaded(
                f"{where}: status {answer.status}",
                retry_after_seconds=parse_retry_after(answer.headers.get("retry-after")),
            )
        if answer.status != 200:  # noqa: PLR2004
            raise _token_error(where, f"status {answer.status}")
        body = await answer.body(_TOKEN_LIMIT_BYTES)
        if body is None:
            raise RegistryProtocolError(f"{where}: an answer of more than {_TOKEN_LIMIT_BYTES} bytes")
        try:
            content = json.loads(body)
            token = content.get("token") or content.get("access_token")
            lifetime = content.get("expires_in") or _DEFAULT_LIFETIME_SECONDS
        except (ValueError, AttributeError, RecursionError):
            raise RegistryProtocolError(f"{where}: an answer that is not a JSON object") from None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryProtocolError(f"{where}: an answer without a token")
        if not isinstance(lifetime, int | float) or lifetime < 0:
            lifetime = _DEFAULT_LIFETIME_SECONDS
        # A short-lived token is still used for most of its life: a token of 1 s must not be renewed at every
        # request.
        seconds = min(float(lifetime), _MAX_LIFETIME_SECONDS)
        return f"Bearer {token}", max(seconds - _MARGIN_SECONDS, seconds / 2)


def _token_error(where: str, what: str) -> UpstreamError:
    return RegistryProtocolError(f"{where}: {what}")
