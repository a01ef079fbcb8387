"""The calls of the gateway's API as generators of steps (``blockgate.calls``), each written once for both clients.

Objects are what docs/http-api.md says, as plain dictionaries. Every call raises ``GatewayClientError``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from blockgate.calls import (
    Answer,
    Ask,
    Blocking,
    GatewayClientError,
    Json,
    Pause,
    Readiness,
    Report,
    Steps,
    asked,
    refusal,
)
from blockgate.names import device_path

if TYPE_CHECKING:
    from blockgate.client import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")

_PAGE_DEVICES = 1000


class _Call(Generic[P, T]):
    """A call of both clients: a plain method of ``Client``, a coroutine of ``AsyncClient``."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: Client, kind: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, kind: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, kind: type) -> Any:
        if client is None:
            return self._steps  # for help() and inspect

        @functools.wraps(self._steps)
        def call(*arguments: Any, **named: Any) -> Any:
            return client.run(self._steps(client, *arguments, **named))

        return call


class Calls:
    """The calls of the API."""

    @_Call
    def device(self, name: str) -> Steps[Json]:
        """Everything about one device."""
        return (yield from asked(Ask("GET", device_path(name))))

    @_Call
    def devices(self, *, state: str | None = None, name: str | None = None) -> Steps[list[Json]]:
        """Summaries of all devices, or of those in ``state`` and with ``name`` in their names."""
        query = {"limit": str(_PAGE_DEVICES)}
        query |= {key: value for key, value in (("state", state), ("name", name)) if value is not None}
        found: list[Json] = []
        while True:
            page = yield from asked(Ask("GET", "/v1/devices", query=query))
            found += page["devices"]
            if page.get("next") is None:
                return found
            query["cursor"] = page["next"]

    @_Call
    def register(self, name: str, specification: Mapping[str, object]) -> Steps[Json]:
        """Register a device, or have one that failed tried again; what the gateway shows of it."""
        return (yield from asked(Ask("PUT", device_path(name), body=specification)))

    @_Call
    def delete(self, name: str) -> Steps[None]:
        """Remove a device."""
        yield from asked(Ask("DELETE", device_path(name)))

    @_Call
    def wait_ready(
        self, name: str, *, patience_seconds: float = 60.0, report: Report | None = None
    ) -> Steps[Json]:
        """Wait until the device can be read; the device then. ``report`` is told of each look.

        A gateway that stops answering meanwhile is a fault that may pass, as one that the device waits for is. Raises
        ``DeviceUnusable``, and ``GatewayWaits`` when nothing moved for ``patience_seconds`` because of such a fault.
        """
        readiness = Readiness(patience_seconds, report)
        device = yield from asked(Ask("GET", device_path(name)))
        while (pause := readiness.pause_after(device)) is not None:
            yield Pause(pause)
            try:
                device = yield from asked(Ask("GET", device_path(name)))
            except GatewayClientError as error:
                if not error.retryable:
                    raise
                fault = {"code": error.code, "detail": error.detail}
                device = {
                    **device,
                    "state": "indexing",
                    "progress": {"phase": "waiting", "done": 0, "total": 0, "error": fault},
                }
        return device

    @_Call
    def upload(self, path: Path) -> Steps[str]:
        """Make a file known to the gateway; its digest. What it has already is not sent again. Raises ``OSError``."""
        digest: str = yield Blocking(functools.partial(_digest, path))
        where = f"/v1/artifacts/{digest}"
        known: Answer = yield Ask("HEAD", where)
        if not known.good:
            if known.status != HTTPStatus.NOT_FOUND:
                raise refusal(known)
            yield from asked(Ask("PUT", where, file=str(path)))
        return digest

    @_Call
    def store_credentials(self, name: str, hosts: Iterable[str], username: str, password: str) -> Steps[Json]:
        """Have the gateway keep a password for registries, in place of an earlier one of this name."""
        body = {"hosts": list(hosts), "username": username, "password": password}
        return (yield from asked(Ask("PUT", f"/v1/credentials/{name}", body=body)))

    @_Call
    def credentials(self) -> Steps[list[Json]]:
        """Names and hosts of the stored credentials."""
        found = yield from asked(Ask("GET", "/v1/credentials"))
        stored: list[Json] = found["credentials"]
        return stored

    @_Call
    def resolve(self, source: object) -> Steps[Json]:
        """What the ``source`` of a registration means now: the pinned reference, digest, platform, layers."""
        return (yield from asked(Ask("POST", "/v1/images/resolve", body=source)))

    @_Call
    def cache(self) -> Steps[Json]:
        """How full the caches are."""
        return (yield from asked(Ask("GET", "/v1/cache")))

    @_Call
    def drop_cache(self) -> Steps[Json]:
        """Drop everything that can be fetched again; how much that was."""
        return (yield from asked(Ask("DELETE", "/v1/cache")))

    @_Call
    def stats(self) -> Steps[Json]:
        """What the dashboard shows."""
        return (yield from asked(Ask("GET", "/v1/stats")))

    @_Call
    def report(self, node: str, body: Mapping[str, object]) -> Steps[None]:
        """Say which devices a node has attached."""
        yield from asked(Ask("POST", f"/v1/nodes/{node}/report", body=body))

    @_Call
    def look(self, path: str) -> Steps[Answer]:
        """The answer to a GET as it came, whatever it is."""
        answer: Answer = yield Ask("GET", path)
        return answer


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
