"""The client of the gateway's API: every call once, for programs with and without asyncio.

``blockgate.api`` holds the calls as generators of steps; :class:`Client` runs them at once, in :class:`AsyncClient` each
is an awaitable. Devices and other objects are what docs/http-api.md says, as plain
dictionaries. Every call raises ``GatewayClientError``.

The token is sent in a header, to this one origin: redirects are not followed, and no proxy or .netrc of the environment is
heeded. Every wait for an answer has a bound.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from blockgate.api import Calls
from blockgate.calls import (
    Answer,
    Ask,
    Blocking,
    GatewayClientError,
    GatewayUnreachable,
    Json,
    Pause,
    Steps,
    refusal,
)
from blockgate.environment import gateway_token, gateway_url
from blockgate.names import device_path

T = TypeVar("T")

# A registry that is slow to answer lets `resolve` take half a minute; an upload is digested before it is answered.
_TIMEOUT = httpx.Timeout(30, connect=10, read=120)
_PIECE_BYTES = 1 << 20


class Client(Calls):
    """Calls that return when they are done. ``url`` and ``token`` are the environment's unless given."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: httpx.Timeout = _TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = (url or gateway_url()).rstrip("/")
        self._http = httpx.Client(**_arguments(self.url, token, timeout), transport=transport)

    def run(self, steps: Steps[T]) -> T:
        """Do the steps of a call."""
        try:
            step = next(steps)
            while True:
                try:
                    done = self._do(step)
                except (GatewayClientError, OSError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, step: Ask | Blocking | Pause) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Blocking):
            return step.call()
        content = _pieces(step.file) if step.file is not None else None
        try:
            return _answer(self._http.request(**_request(step), content=content))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(self.url, error) from error

    def events(self, name: str) -> Iterator[tuple[str, Json]]:
        """The device's events as (``device`` or ``gone``, data), until the device changes no more by itself."""
        try:
            with self._http.stream("GET", f"{device_path(name)}/events") as response:
                if not response.is_success:
                    response.read()
                    raise refusal(_answer(response))
                event = ""
                for line in response.iter_lines():
                    event, data = _event(event, line)
                    if data is not None:
                        yield event, data
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(Calls):
    """The same calls as coroutines."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: httpx.Timeout = _TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = (url or gateway_url()).rstrip("/")
        self._http = httpx.AsyncClient(**_arguments(self.url, token, timeout), transport=transport)

    async def run(self, steps: Steps[T]) -> T:
        """Do the steps of a call."""
        try:
            step = next(steps)
            while True:
                try:
                    done = await self._do(step)
                except (GatewayClientError, OSError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, step: Ask | Blocking | Pause) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Blocking):
            return await asyncio.to_thread(step.call)
        content = _aside(_pieces(step.file)) if step.file is not None else None
        try:
            return _answer(await self._http.request(**_request(step), content=content))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(self.url, error) from error

    async def events(self, name: str) -> AsyncIterator[tuple[str, Json]]:
        """The device's events as (``device`` or ``gone``, data), until the device changes no more by itself."""
        try:
            async with self._http.stream("GET", f"{device_path(name)}/events") as response:
                if not response.is_success:
                    await response.aread()
                    raise refusal(_answer(response))
                event = ""
                async for line in response.aiter_lines():
                    event, data = _event(event, line)
                    if data is not None:
                        yield event, data
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _arguments(url: str, token: str | None, timeout: httpx.Timeout) -> dict[str, Any]:
    token = token or gateway_token()
    try:
        base_url = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise _unreachable(url, error) from error
    return {
        "base_url": base_url,
        "headers": {"authorization": f"Bearer {token}"} if token else {},
        "timeout": timeout,
        "trust_env": False,
        "follow_redirects": False,
    }


def _request(ask: Ask) -> dict[str, Any]:
    headers = {}
    if ask.file is not None:
        headers = {"content-length": str(Path(ask.file).stat().st_size)}
    return {"method": ask.method, "url": ask.path, "json": ask.body, "params": ask.query, "headers": headers}


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


def _event(event: str, line: str) -> tuple[str, Json | None]:
    """Take one line of an event stream; the event's name so far, and its data once they came."""
    field, _, value = line.partition(": ")
    if field == "event":
        return value, None
    return event, json.loads(value) if field == "data" else None


def _pieces(path: str) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


async def _aside(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


def _unreachable(url: str, error: Exception) -> GatewayUnreachable:
    return GatewayUnreachable(
        f"no gateway answers at {url} ({error}); start one with 'blockgate serve', or say with --gateway or "
        "BLOCKGATE_URL where it is"
    )
