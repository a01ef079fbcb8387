"""What ``/v1/stats`` and the map of a device answer."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from gateway.api.schemas import FailureView, Health, ProgressView, SegmentView, View
from gateway.observe.nodes import NodeDevice
from gateway.observe.spanmap import CellState
from gateway.recipes.spec import Layout
from gateway.recipes.states import State, Verification


class StatusView(BaseModel):
    """The one line to look at."""

    level: Literal["ok", "trouble"]
    reason: str = Field(description="What is wrong, most serious first; or that nothing is")


class TrafficView(BaseModel):
    """Reads of device data in the latest half minute, and in all."""

    per_second: float
    p50_seconds: float | None = Field(description="Estimated from a histogram; null when nothing was read")
    p99_seconds: float | None
    errors_per_second: float = Field(description="Answers of status 5xx and answers that were cut short")
    in_flight: int = Field(description="Requests of any kind")
    requests: int = Field(description="Since the start")
    errors: int = Field(description="Since the start")


class BytesView(BaseModel):
    """Device bytes sent since the start, by where each was when it was asked for."""

    memory: int
    disk: int
    upstream: int
    local: int
    hit_ratio: float | None = Field(
        description="Share that did not come from upstream; null when nothing was read"
    )
    fetched: int = Field(description="Compressed bytes fetched from upstream for reads")
    amplification: float | None = Field(
        description="`fetched` by `upstream`; null when nothing was read cold"
    )


class SeriesView(BaseModel):
    """The last 15 minutes, oldest first; all lists are equally long. The last value is of a step that is not over."""

    step_seconds: int
    start: datetime = Field(description="When the first step began")
    requests: list[int]
    errors: list[int]
    memory: list[int] = Field(description="Bytes")
    disk: list[int] = Field(description="Bytes")
    upstream: list[int] = Field(description="Bytes")
    local: list[int] = Field(description="Bytes")
    hit_ratio: list[float | None]
    p50_seconds: list[float | None]
    p99_seconds: list[float | None]


class UpstreamView(BaseModel):
    """A registry, as this gateway met it since the start."""

    registry: str
    breaker: Literal["closed", "half_open", "open"]
    attempts: int
    failures: int
    retries: int
    throttled: int
    received_bytes: int
    p50_seconds: float | None
    p99_seconds: float | None


class DeviceStats(BaseModel):
    """A device, what was read of it since it was opened, and how far it is."""

    name: str
    state: State
    health: Health
    verification: Verification
    layout: Layout
    image: str
    size: int | None
    served_bytes: int
    hit_ratio: float | None
    amplification: float | None
    progress: ProgressView | None
    error: FailureView | None = Field(
        description="Why it is not as it should be, or how the last fetch failed"
    )
    created_at: datetime


class NodeView(BaseModel):
    """A node that reported in the last 15 minutes."""

    name: str
    version: str
    reported_at: datetime
    silent: bool = Field(description="Not heard of for a minute")
    devices: list[NodeDevice]


class EventView(View):
    """A line of the log that somebody may want to see."""

    at: datetime
    level: str
    text: str
    device: str | None


class CachesView(BaseModel):
    """How full the tiers are."""

    memory_bytes: int
    memory_budget_bytes: int
    disk_bytes: int
    disk_budget_bytes: int
    disk_bypassed: bool
    disk_errors: int
    evictions: int


class StatsView(BaseModel):
    """Everything that the dashboard shows, of all workers."""

    generated_at: datetime
    version: str
    workers: int
    started_at: datetime
    status: StatusView
    traffic: TrafficView
    bytes: BytesView
    series: SeriesView
    caches: CachesView
    upstream: list[UpstreamView]
    devices_total: int = Field(description="How many devices there are")
    devices: list[DeviceStats] = Field(
        description="The first 100 by name; `GET /v1/devices` has all, page by page"
    )
    nodes: list[NodeView]
    events: list[EventView]


class CellsView(BaseModel):
    """Cells in order, as columns of equal length."""

    offset: list[int]
    length: list[int]
    spans: list[int] = Field(description="How many spans the cell stands for")
    state: list[CellState] = Field(
        description="`never` read and not here; `dropped`: read, but not here any more; the best place of its spans else"
    )
    cached: list[float] = Field(description="Share of the cell's bytes that is in memory or on disk")
    reads: list[int] = Field(description="How often its spans were read")


class MapView(BaseModel):
    """The address space of a device. Cells cover the segments but for zeros."""

    name: str
    size: int
    segments: list[SegmentView]
    cells: CellsView
