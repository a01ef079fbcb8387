"""Every metric of the node client, and the little HTTP server that shows them.

Servers and sources keep plain numbers; they are read when somebody asks, so a read pays for an addition and nothing else.
prometheus-client is imported only where metrics are asked for: an agent without them stays small. Names follow Prometheus'
conventions; the one label with many values is the device, of which a node has few.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from nbd_client import __version__
from nbd_client.errors import InvalidOption
from nbd_client.server import WAIT_BOUNDS, Counters
from nbd_client.source.stack import Source

if TYPE_CHECKING:
    from prometheus_client.core import Metric

log = logging.getLogger(__name__)

State = Literal["connected", "reconnecting", "failed"]

_REQUEST_SECONDS = 5.0
_MAX_HEAD_BYTES = 8 << 10
_PATH = b"/metrics"


@dataclass(frozen=True, slots=True)
class SourceNumbers:
    """What a source did since it was opened."""

    http_requests: int = 0
    http_connections: int = 0
    received_bytes: int = 0
    retries: int = 0
    stalls: int = 0
    cached_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """One device or export, as it is now. ``device`` is /dev/nbdN, a socket's path, or empty for ``serve``."""

    device: str
    state: State
    counters: Counters
    source: SourceNumbers


def numbers_of(source: Source | None) -> SourceNumbers:
    """What is to be told of a source; zeros where it is not open."""
    if source is None:
        return SourceNumbers()
    return SourceNumbers(
        source.requests,
        source.connections,
        source.received_bytes,
        source.retries,
        source.stalls,
        source.cached_bytes,
    )


COUNTERS = {
    "blockgate_nbd_read_bytes": "Bytes of the device given to NBD clients.",
    "blockgate_nbd_connections": "NBD connections accepted or given to the kernel.",
    "blockgate_nbd_http_requests": "Range requests sent.",
    "blockgate_nbd_http_connections": "HTTP connections opened; many against requests means that the server drops them.",
    "blockgate_nbd_http_received_bytes": "Bytes of the device received over HTTP, read ahead or asked for.",
    "blockgate_nbd_retries": "Attempts that failed and were repeated.",
    "blockgate_nbd_stalls": "Attempts that did not finish in their time.",
}
REQUESTS = "blockgate_nbd_requests"
CACHE = "blockgate_nbd_cache_requests"
WAIT = "blockgate_nbd_wait_seconds"
CACHED = "blockgate_nbd_cache_used_bytes"
DEVICES = "blockgate_nbd_devices"
BUILD = "blockgate_nbd_build_info"
NAMES = frozenset({*COUNTERS, REQUESTS, CACHE, WAIT, CACHED, DEVICES, BUILD})
"""Names of families: counters' samples end in ``_total``."""


def expose(served: Iterable[Served]) -> bytes:
    """The text format (version 0.0.4) of everything that is served."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415  only when asked for

    registry = CollectorRegistry()
    registry.register(_Collected(_families(list(served))))
    return generate_latest(registry)


class _Collected:
    """Families as a collector."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(served: Sequence[Served]) -> list[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    requests = CounterMetricFamily(
        REQUESTS, "Reads of NBD clients that were answered.", labels=["device", "result"]
    )
    cache = CounterMetricFamily(
        CACHE,
        "Reads by whether their bytes were at hand; one that shares a fetch is a miss.",
        labels=["device", "result"],
    )
    wait = HistogramMetricFamily(WAIT, "How long reads took whose bytes were not at hand.", labels=["device"])
    counters = {name: CounterMetricFamily(name, text, labels=["device"]) for name, text in COUNTERS.items()}
    cached = GaugeMetricFamily(CACHED, "Memory that holds what was read.", labels=["device"])
    devices = GaugeMetricFamily(DEVICES, "Devices and exports by state.", labels=["state"])
    build = GaugeMetricFamily(BUILD, "Always 1; what runs.", labels=["version"])
    build.add_metric([__version__], 1)
    for state in ("connected", "reconnecting", "failed"):
        devices.add_metric([state], sum(one.state == state for one in served))
    for one in served:
        made, source, label = one.counters, one.source, one.device
        requests.add_metric([label, "ok"], made.reads)
        requests.add_metric([label, "error"], made.errors)
        cache.add_metric([label, "hit"], made.hits)
        cache.add_metric([label, "miss"], sum(made.waits))
        bounds = [*(f"{bound:g}" for bound in WAIT_BOUNDS), "+Inf"]
        wait.add_metric([label], list(zip(bounds, accumulate(made.waits), strict=True)), made.wait_seconds)
        cached.add_metric([label], source.cached_bytes)
        values = (
            made.read_bytes,
            made.connections,
            source.http_requests,
            source.http_connections,
            source.received_bytes,
            source.retries,
            source.stalls,
        )
        for family, value in zip(counters.values(), values, strict=True):
            family.add_metric([label], value)
    return [requests, cache, wait, *counters.values(), cached, devices, build]


async def serve_metrics(host: str, port: int, served: Callable[[], Iterable[Served]]) -> asyncio.Server:
    """Answer GET /metrics on ``host`` until the server is closed. Raises ``InvalidOption``."""
    import prometheus_client  # noqa: F401, PLC0415  now, not while reads wait for the first scrape

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, served))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a request for metrics broke: %s", error)
        finally:
            writer.close()

    try:
        return await asyncio.start_server(answer, host, port, limit=_MAX_HEAD_BYTES)
    except OSError as error:
        raise InvalidOption(
            f"cannot listen for metrics on {host}:{port}: {error.strerror or error}"
        ) from error


def _answer(head: bytes, served: Callable[[], Iterable[Served]]) -> bytes:
    method, _, rest = head.partition(b" ")
    if rest.partition(b" ")[0].partition(b"?")[0] != _PATH:
        status, body = "404 Not Found", b"only /metrics is here\n"
    elif method not in {b"GET", b"HEAD"}:
        status, body = "405 Method Not Allowed", b"only GET and HEAD\n"
    else:
        status, body = "200 OK", expose(served())
    fields = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"
    )
    return fields.encode() + (b"" if method == b"HEAD" else body)
