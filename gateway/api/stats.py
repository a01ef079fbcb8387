"""What the dashboard draws, and the map of a device."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response

from gateway import __version__, errors, metrics
from gateway.api.problems import responses
from gateway.api.schemas import FailureView, ProgressView, SegmentView
from gateway.api.stats_schemas import (
    BytesView,
    CachesView,
    CellsView,
    DeviceStats,
    EventView,
    MapView,
    NodeView,
    SeriesView,
    StatsView,
    StatusView,
    TrafficView,
    UpstreamView,
)
from gateway.api.worker import worker_of
from gateway.devices.device import Device
from gateway.metrics import Histogram, Numbers, quantile
from gateway.observe.nodes import SILENT_SECONDS, NodeRecord
from gateway.observe.observation import (
    BUCKETS_COLUMN,
    ERRORS_COLUMN,
    ORIGIN_COLUMN,
    REQUESTS_COLUMN,
    Observation,
    Overview,
)
from gateway.observe.spanmap import Cell
from gateway.observe.timeline import SLOT_SECONDS
from gateway.recipes.records import DeviceSummary, Failure
from gateway.recipes.states import State
from gateway.spans.tier import Origin

_RECENT_SLOTS = 6
_NAMED = 3

router = APIRouter(tags=["observation"])

Name = Annotated[str, Path(description="Device name: `[a-z0-9][a-z0-9._-]{0,127}`", max_length=200)]


@router.get("/v1/stats", response_model=StatsView)
async def stats(request: Request) -> Response:
    """What the dashboard draws, of all workers; half a second old at most."""
    return _document(await worker_of(request).stats.get())


@router.get(
    "/v1/devices/{name}/map",
    response_model=MapView,
    responses=responses(
        errors.DeviceNotFound,
        errors.DeviceNotReady,
        errors.DeviceFailed,
        errors.DeviceQuarantined,
        errors.StorageError,
    ),
)
async def device_map(name: Name, request: Request) -> Response:
    """Where the bytes of a device are, and how often each stretch was read: at most 2048 cells."""
    worker = worker_of(request)
    device = await worker.services.shelf.get(name)
    cells = await worker.observation.map(device)
    return _document(await asyncio.to_thread(lambda: _map(device, cells).model_dump_json()))


def _document(text: str) -> Response:
    return Response(text, media_type="application/json", headers={"cache-control": "no-store"})


def _map(device: Device, cells: list[Cell]) -> MapView:
    return MapView(
        name=device.name,
        size=device.size,
        segments=[SegmentView.model_validate(segment) for segment in device.segments],
        cells=CellsView(
            offset=[cell.offset for cell in cells],
            length=[cell.length for cell in cells],
            spans=[cell.spans for cell in cells],
            state=[cell.state for cell in cells],
            cached=[round(cell.cached, 4) for cell in cells],
            reads=[cell.reads for cell in cells],
        ),
    )


async def document(observation: Observation) -> str:
    """What ``/v1/stats`` answers. With many devices it is large, so it is written off the event loop."""
    overview = await observation.overview()
    return await asyncio.to_thread(lambda: _view(overview).model_dump_json())


def _view(overview: Overview) -> StatsView:
    numbers = overview.numbers
    upstream = _upstream(numbers)
    return StatsView(
        generated_at=_moment(overview.now),
        version=__version__,
        workers=round(numbers.get(metrics.WORKERS)),
        started_at=_moment(max(numbers.values[metrics.START_TIME.name].values())),
        status=status_of(overview, upstream, numbers, _failed_lately(overview)),
        traffic=_traffic(overview),
        bytes=_bytes(numbers),
        series=_series(overview),
        caches=_caches(numbers),
        upstream=upstream,
        devices_total=sum(overview.counts.values()),
        devices=[_device(device, overview) for device in overview.devices or []],
        nodes=[_node(node, overview.now) for node in overview.nodes],
        events=[EventView.model_validate(event) for event in overview.events],
    )


def status_of(
    overview: Overview,
    upstream: Iterable[UpstreamView],
    numbers: Numbers,
    failed_reads: int = 0,
) -> StatusView:
    """Green or red, and why. ``failed_reads`` is of the latest half minute."""
    reasons = []
    failures = sum(numbers.values.get(metrics.INTEGRITY_FAILURES.name, {}).values())
    if failures:
        reasons.append(f"{_count(round(failures), 'integrity failure')} since the start")
    quarantined = overview.counts.get(State.QUARANTINED, 0)
    if quarantined:
        names = _few(overview.quarantined, quarantined)
        reasons.append(f"{_count(quarantined, 'device')} quarantined ({names})")
    if overview.degraded:
        degraded = sorted(overview.degraded)
        reasons.append(f"{_count(len(degraded), 'device')} degraded ({_few(degraded, len(degraded))})")
    hosts = [entry.registry for entry in upstream if entry.breaker == "open"]
    if hosts:
        reasons.append(f"{_few(hosts, len(hosts))} does not answer")
    if failed_reads:
        reasons.append(f"{_count(failed_reads, 'read')} failed in the last half minute")
    if overview.devices is None:
        reasons.append("the catalog does not answer")
    if numbers.get(metrics.CACHE_BYPASSED):
        reasons.append("the disk cache cannot be written")
    if reasons:
        return StatusView(level="trouble", reason="; ".join(reasons))
    serving = overview.counts.get(State.READY, 0)
    under_way = overview.counts.get(State.INDEXING, 0)
    failed = overview.counts.get(State.FAILED, 0)
    parts = [f"{_count(serving, 'device')} ready"]
    parts += [f"{under_way} being indexed"] if under_way else []
    # Somebody asked for an image that could not be had: no trouble of the gateway's.
    parts += [f"{_count(failed, 'registration')} failed"] if failed else ["nothing is wrong"]
    return StatusView(level="ok", reason=", ".join(parts))


def _failed_lately(overview: Overview) -> int:
    row, _ = overview.timeline.recent(overview.now, _RECENT_SLOTS)
    return row[ERRORS_COLUMN]


def _traffic(overview: Overview) -> TrafficView:
    row, seconds = overview.timeline.recent(overview.now, _RECENT_SLOTS)
    buckets = row[BUCKETS_COLUMN:]
    data = {
        labels: count
        for labels, count in overview.numbers.values.get(metrics.REQUESTS.name, {}).items()
        if labels[1].endswith("/data")
    }
    failed = sum(count for labels, count in data.items() if labels[2].startswith("5"))
    return TrafficView(
        per_second=round(row[REQUESTS_COLUMN] / seconds, 2),
        p50_seconds=quantile(buckets, 0.5),
        p99_seconds=quantile(buckets, 0.99),
        errors_per_second=round(row[ERRORS_COLUMN] / seconds, 3),
        in_flight=round(overview.numbers.get(metrics.IN_FLIGHT)),
        requests=round(sum(data.values())),
        errors=round(failed + overview.numbers.get(metrics.CUT_SHORT)),
    )


def _bytes(numbers: Numbers) -> BytesView:
    sent = {origin: round(numbers.get(metrics.READ_BYTES, origin.value)) for origin in Origin}
    fetched = round(numbers.get(metrics.FETCHED_BYTES))
    cold = sent[Origin.UPSTREAM]
    return BytesView(
        memory=sent[Origin.MEMORY],
        disk=sent[Origin.DISK],
        upstream=cold,
        local=sent[Origin.LOCAL],
        hit_ratio=_share(sum(sent.values()) - cold, sum(sent.values())),
        fetched=fetched,
        amplification=_share(fetched, cold),
    )


def _series(overview: Overview) -> SeriesView:
    rows = overview.timeline.series(overview.now)
    columns = list(zip(*rows, strict=True))
    sent = {origin: columns[ORIGIN_COLUMN + number] for number, origin in enumerate(Origin)}
    totals = [sum(step) for step in zip(*sent.values(), strict=True)]
    newest = overview.now // SLOT_SECONDS
    return SeriesView(
        step_seconds=SLOT_SECONDS,
        start=_moment((newest - len(rows) + 1) * SLOT_SECONDS),
        requests=list(columns[REQUESTS_COLUMN]),
        errors=list(columns[ERRORS_COLUMN]),
        memory=list(sent[Origin.MEMORY]),
        disk=list(sent[Origin.DISK]),
        upstream=list(sent[Origin.UPSTREAM]),
        local=list(sent[Origin.LOCAL]),
        hit_ratio=[
            _share(total - cold, total) for total, cold in zip(totals, sent[Origin.UPSTREAM], strict=True)
        ],
        p50_seconds=[quantile(row[BUCKETS_COLUMN:], 0.5) for row in rows],
        p99_seconds=[quantile(row[BUCKETS_COLUMN:], 0.99) for row in rows],
    )


def _caches(numbers: Numbers) -> CachesView:
    return CachesView(
        memory_bytes=round(numbers.get(metrics.CACHE_USED, "memory")),
        memory_budget_bytes=round(numbers.get(metrics.CACHE_BUDGET, "memory")),
        disk_bytes=round(numbers.get(metrics.CACHE_USED, "disk")),
        disk_budget_bytes=round(numbers.get(metrics.CACHE_BUDGET, "disk")),
        disk_bypassed=bool(numbers.get(metrics.CACHE_BYPASSED)),
        disk_errors=round(sum(numbers.values.get(metrics.CACHE_WRITE_ERRORS.name, {}).values())),
        evictions=round(sum(numbers.values.get(metrics.CACHE_EVICTIONS.name, {}).values())),
    )


def _upstream(numbers: Numbers) -> list[UpstreamView]:
    attempts = numbers.histograms.get(metrics.UPSTREAM_SECONDS.name, {})
    retries = numbers.values.get(metrics.UPSTREAM_RETRIES.name, {})
    states: tuple[Literal["closed", "half_open", "open"], ...] = ("closed", "half_open", "open")
    shown = []
    for host in sorted({labels[0] for labels in attempts}):
        good, total = Histogram(), 0
        for (registry, outcome), histogram in attempts.items():
            if registry == host:
                total += histogram.count
                if outcome == "ok":
                    good.add(histogram)
        abandoned = attempts.get((host, "abandoned"), Histogram()).count
        shown.append(
            UpstreamView(
                registry=host,
                breaker=states[round(numbers.get(metrics.BREAKER_STATE, host))],
                attempts=total,
                failures=total - good.count - abandoned,
                retries=round(sum(count for labels, count in retries.items() if labels[0] == host)),
                throttled=round(numbers.get(metrics.UPSTREAM_THROTTLED, host)),
                received_bytes=round(numbers.get(metrics.UPSTREAM_BYTES, host)),
                p50_seconds=quantile(good.buckets, 0.5),
                p99_seconds=quantile(good.buckets, 0.99),
            )
        )
    return shown


def _device(device: DeviceSummary, overview: Overview) -> DeviceStats:
    sent = dict.fromkeys(Origin, 0)
    fetched = 0
    trouble = device.failure
    for worker in overview.workers:
        held = worker.devices.get(device.name)
        if held is not None and held.etag == device.etag:
            fetched += held.fetched_bytes
            trouble = trouble or (Failure(*held.error) if held.error else None)
            for origin in Origin:
                sent[origin] += held.served.get(origin.value, 0)
    total, cold = sum(sent.values()), sent[Origin.UPSTREAM]
    return DeviceStats(
        name=device.name,
        state=device.state,
        health="degraded" if device.name in overview.degraded else "ok",
        verification=device.verification,
        layout=device.layout,
        image=device.image,
        size=device.size,
        served_bytes=total,
        hit_ratio=_share(total - cold, total),
        amplification=_share(fetched, cold),
        progress=ProgressView.model_validate(device.progress) if device.progress else None,
        error=FailureView.model_validate(trouble) if trouble else None,
        created_at=device.created_at,
    )


def _node(node: NodeRecord, now: float) -> NodeView:
    return NodeView(
        name=node.name,
        version=node.report.version,
        reported_at=_moment(node.reported_at),
        silent=now - node.reported_at > SILENT_SECONDS,
        devices=node.report.devices,
    )


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _few(names: list[str], total: int) -> str:
    shown = names[:_NAMED]
    return ", ".join(shown) + (f" and {total - len(shown)} more" if total > len(shown) else "")
