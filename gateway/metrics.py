"""Every metric of the gateway, and how numbers of several workers become one answer.

The parts of the gateway keep plain numbers; they are read when somebody asks (``gateway/observe``). So the hot path pays for
an addition to an integer and nothing else. Names follow Prometheus' conventions: base units (seconds, bytes), ``_total``
for counters, labels with few values: no digest, path, device or token is ever one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

Kind = Literal["counter", "gauge", "highest", "histogram"]
"""``highest`` is a gauge of which the highest of all workers counts, where ``gauge`` means their sum."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric. ``name`` is what queries say, without the ``_bucket``, ``_sum`` and ``_count`` of histograms."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_ALL: list[Definition] = []


def _define(name: str, kind: Kind, text: str, *labels: str) -> Definition:
    made = Definition(f"blockgate_{name}", kind, text, labels)
    _ALL.append(made)
    return made


BUILD_INFO = _define("build_info", "highest", "Always 1; what runs.", "version", "python")
START_TIME = _define("start_time_seconds", "highest", "When the youngest worker started, in Unix time.")
WORKERS = _define("workers", "gauge", "Worker processes that serve.")
RESIDENT_BYTES = _define("resident_memory_bytes", "gauge", "Resident memory, all workers together.")
OPEN_FDS = _define("open_fds", "highest", "Open file descriptors of the worker that has most.")
MAX_FDS = _define("max_fds", "highest", "File descriptors that a worker may open.")
LOOP_LAG = _define("event_loop_lag_seconds", "histogram", "How late the event loop woke a timer.")

REQUESTS = _define("requests_total", "counter", "Answered requests.", "method", "route", "code")
REQUEST_SECONDS = _define(
    "request_seconds", "histogram", "From a request's head to the last byte of its answer.", "route"
)
IN_FLIGHT = _define("requests_in_flight", "gauge", "Requests that are being answered.")
CUT_SHORT = _define(
    "reads_cut_short_total", "counter", "Answers ended short of their length: a later part could not be had."
)
READ_BYTES = _define(
    "read_bytes_total",
    "counter",
    "Device bytes sent, by where each was at the moment it was asked for.",
    "source",
)

CACHE_REQUESTS = _define("cache_requests_total", "counter", "Spans looked up in a tier.", "tier", "result")
CACHE_USED = _define("cache_used_bytes", "gauge", "Bytes that a tier holds.", "tier")
CACHE_BUDGET = _define("cache_budget_bytes", "gauge", "Bytes that a tier may hold.", "tier")
CACHE_EVICTIONS = _define(
    "cache_evictions_total", "counter", "Spans that a tier dropped to make room.", "tier"
)
CACHE_WRITE_ERRORS = _define(
    "cache_write_errors_total", "counter", "Failed accesses to the disk tier.", "errno"
)
CACHE_CORRUPT = _define(
    "cache_corrupt_total", "counter", "Damaged files found in the disk tier; each counts as a miss."
)
CACHE_BYPASSED = _define(
    "cache_bypassed", "highest", "1 while writing to the disk tier pauses after an error."
)

UPSTREAM_SECONDS = _define(
    "upstream_seconds", "histogram", "Attempts at a registry, by how they ended.", "registry", "outcome"
)
UPSTREAM_BYTES = _define(
    "upstream_received_bytes_total", "counter", "Bytes of bodies that came from a registry.", "registry"
)
UPSTREAM_RETRIES = _define("upstream_retries_total", "counter", "Repeated attempts.", "registry", "reason")
UPSTREAM_THROTTLED = _define(
    "upstream_throttled_total", "counter", "Attempts that a registry refused for load (429, 5xx).", "registry"
)
BREAKER_STATE = _define(
    "upstream_breaker_state",
    "highest",
    "Breaker of a registry: 0 closed, 1 half open, 2 open.",
    "registry",
)

FETCHED_BYTES = _define("fetched_bytes_total", "counter", "Compressed bytes fetched to answer reads.")
AMPLIFICATION = _define(
    "read_amplification_ratio",
    "highest",
    "Bytes fetched from upstream, reading ahead included, for each byte that was sent cold, since the start.",
)
FETCHING_BYTES = _define(
    "fetching_bytes",
    "gauge",
    "Decoded bytes of spans that are being fetched, or not handed on by their readers yet.",
)
SENDING_BYTES = _define("sending_bytes", "gauge", "Bytes that wait for clients to read them.")
COALESCED = _define("reads_coalesced_total", "counter", "Reads that joined a fetch already under way.")
SHED = _define("reads_shed_total", "counter", "Reads refused since too much was being fetched.")
READAHEAD = _define(
    "readahead_spans_total", "counter", "Spans fetched before they were asked for.", "outcome"
)
INFLATE_SECONDS = _define(
    "inflate_seconds", "histogram", "Decoding and verifying one span, waiting for a thread included."
)
INTEGRITY_FAILURES = _define(
    "integrity_failures_total", "counter", "Bytes that were not what was promised.", "kind"
)

DEVICES = _define("devices", "highest", "Registered devices.", "state")
DEGRADED = _define(
    "degraded_devices", "highest", "Devices of which bytes could not be had when they were last asked for."
)
REGISTRATIONS = _define("registrations_total", "counter", "Registrations that came to an end.", "outcome")
REGISTRATION_BYTES = _define(
    "registration_bytes", "highest", "Progress of all registrations under way together.", "part"
)
NODES = _define("nodes", "highest", "Nodes that reported lately.")

DEFINITIONS: tuple[Definition, ...] = tuple(_ALL)
_BY_NAME = {definition.name: definition for definition in DEFINITIONS}

SECONDS_BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class Histogram:
    """Counts of seconds per bucket; the last bucket has no bound. A plain list, cheap to add to."""

    __slots__ = ("buckets", "seconds")

    def __init__(self, buckets: Sequence[int] | None = None, seconds: float = 0.0) -> None:
        self.buckets = [0] * (len(SECONDS_BOUNDS) + 1) if buckets is None else list(buckets)
        self.seconds = seconds

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: Histogram) -> None:
        """Count what another one counted."""
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.seconds += other.seconds

    @property
    def count(self) -> int:
        """Observations."""
        return sum(self.buckets)


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """The ``share`` quantile in seconds, interpolated in its bucket; ``None`` when nothing was counted.

    What lies beyond the last bound counts as the last bound, as Prometheus does it.
    """
    rank = share * sum(buckets)
    if not rank:
        return None
    seen = 0
    for number, bound in enumerate(SECONDS_BOUNDS):
        if buckets[number] and seen + buckets[number] >= rank:
            lower = SECONDS_BOUNDS[number - 1] if number else 0.0
            return lower + (bound - lower) * (rank - seen) / buckets[number]
        seen += buckets[number]
    return SECONDS_BOUNDS[-1]


class Numbers:
    """Values of metrics at one moment, of one worker or of several."""

    def __init__(self) -> None:
        self.values: dict[str, dict[tuple[str, ...], float]] = {}
        self.histograms: dict[str, dict[tuple[str, ...], Histogram]] = {}

    def add(self, definition: Definition, value: float, *labels: str) -> None:
        """Add to a counter or a gauge; for ``highest`` the higher value counts."""
        series = self.values.setdefault(definition.name, {})
        before = series.get(labels)
        if before is None:
            series[labels] = value
        else:
            series[labels] = max(before, value) if definition.kind == "highest" else before + value

    def add_histogram(self, definition: Definition, histogram: Histogram, *labels: str) -> None:
        """Add a histogram's counts."""
        self.histograms.setdefault(definition.name, {}).setdefault(labels, Histogram()).add(histogram)

    def get(self, definition: Definition, *labels: str) -> float:
        """A value; 0 where there is none."""
        return self.values.get(definition.name, {}).get(labels, 0)

    def absorb(self, other: Numbers, *, alive: bool) -> None:
        """Add another worker's. What a worker that ended counted stays counted; its gauges are gone with it."""
        for name, series in other.values.items():
            definition = _BY_NAME[name]
            if alive or definition.kind == "counter":
                for labels, value in series.items():
                    self.add(definition, value, *labels)
        for name, histograms in other.histograms.items():
            for labels, histogram in histograms.items():
                self.add_histogram(_BY_NAME[name], histogram, *labels)

    def dump(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "values": [[n, list(k), v] for n, series in self.values.items() for k, v in series.items()],
            "histograms": [
                [n, list(k), h.buckets, h.seconds]
                for n, series in self.histograms.items()
                for k, h in series.items()
            ],
        }

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Numbers:
        """What ``dump`` gave."""
        made = cls()
        for name, labels, value in dumped["values"]:
            made.values.setdefault(name, {})[tuple(labels)] = value
        for name, labels, buckets, seconds in dumped["histograms"]:
            made.histograms.setdefault(name, {})[tuple(labels)] = Histogram(buckets, seconds)
        return made


class _Families:
    """What prometheus-client takes for a registry: something to collect from."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        for definition in DEFINITIONS:
            if definition.kind == "histogram":
                yield self._histogram(definition)
            else:
                kind = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
                family = kind(definition.name, definition.help, labels=definition.labels)
                for labels, value in sorted(self._numbers.values.get(definition.name, {}).items()):
                    family.add_metric(labels, value)
                yield family

    def _histogram(self, definition: Definition) -> Metric:
        family = HistogramMetricFamily(definition.name, definition.help, labels=definition.labels)
        for labels, histogram in sorted(self._numbers.histograms.get(definition.name, {}).items()):
            cumulated, buckets = 0, []
            bounds = [*(repr(bound) for bound in SECONDS_BOUNDS), "+Inf"]
            for bound, count in zip(bounds, histogram.buckets, strict=True):
                cumulated += count
                buckets.append((bound, cumulated))
            family.add_metric(labels, buckets, histogram.seconds)
        return family


def expose(numbers: Numbers, accept: str) -> tuple[bytes, str]:
    """Body and content type in the exposition format that an ``Accept`` field prefers: text, or OpenMetrics."""
    encode, content_type = choose_encoder(accept)
    return encode(_Families(numbers)), content_type
