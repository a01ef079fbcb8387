"""Reading the plain numbers of the parts of one worker into metrics."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterable, Mapping, Sequence

from gateway import __version__, errors, metrics
from gateway.devices.device import Device
from gateway.errors import IntegrityError
from gateway.metrics import Histogram, Numbers
from gateway.observe.requests import RequestCounts
from gateway.observe.workers import DeviceNumbers
from gateway.recipes.records import Failure, Progress
from gateway.recipes.states import State
from gateway.services import Services
from gateway.spans.tier import Origin

_BREAKER_VALUES = {"closed": 0, "half_open": 1, "open": 2}
_INTEGRITY_CODES = frozenset(leaf.code for leaf in errors.leaves(IntegrityError))
STARTED_AT = time.time()


def worker_numbers(services: Services, requests: RequestCounts, lag: Histogram) -> Numbers:
    """Everything that one worker counts. Only reads numbers in memory, on the event loop that changes them."""
    numbers = Numbers()
    numbers.add_histogram(metrics.LOOP_LAG, lag)
    requests.add_to(numbers)
    numbers.add(metrics.CUT_SHORT, requests.cut_short)
    for origin, count in served(services).items():
        numbers.add(metrics.READ_BYTES, count, origin.value)
    _store(services, numbers)
    _upstream(services, numbers)
    for outcome, count in services.registrar.outcomes.items():
        numbers.add(metrics.REGISTRATIONS, count, outcome)
    return numbers


def served(services: Services) -> dict[Origin, int]:
    """Bytes sent by origin, with all origins."""
    total = services.shelf.served()
    return {origin: total[origin] for origin in Origin}


def shared_numbers(
    services: Services,
    numbers: Numbers,
    counts: Mapping[State, int],
    under_way: Sequence[Progress],
    *,
    degraded: int,
    nodes: int,
) -> None:
    """Add what is the same whichever worker is asked: the disk tier's size, devices, nodes."""
    disk = services.disk
    numbers.add(metrics.CACHE_USED, disk.used_bytes, "disk")
    numbers.add(metrics.CACHE_BUDGET, disk.high_bytes, "disk")
    for state in State:
        numbers.add(metrics.DEVICES, counts.get(state, 0), state.value)
    numbers.add(metrics.DEGRADED, degraded)
    numbers.add(metrics.REGISTRATION_BYTES, sum(progress.done for progress in under_way), "done")
    numbers.add(metrics.REGISTRATION_BYTES, sum(progress.total for progress in under_way), "total")
    numbers.add(metrics.NODES, nodes)
    cold = numbers.get(metrics.READ_BYTES, Origin.UPSTREAM)
    if cold:
        numbers.add(metrics.AMPLIFICATION, numbers.get(metrics.FETCHED_BYTES) / cold)


def device_numbers(devices: Iterable[Device], trouble: Mapping[str, Failure]) -> dict[str, DeviceNumbers]:
    """What open devices count, by name; those of which nothing happened are left out. On any thread."""
    found = {}
    for device in devices:
        failure = trouble.get(device.name)
        fetched = sum(layer.fetched_bytes for layer in device.layers if layer is not None)
        if failure is not None or fetched or any(device.served.values()):
            found[device.name] = DeviceNumbers(
                etag=device.etag,
                served={origin.value: count for origin, count in device.served.items()},
                fetched_bytes=fetched,
                error=None if failure is None else (failure.code, failure.detail),
            )
    return found


def process_numbers(numbers: Numbers) -> None:
    """Add what the kernel knows of this process; blocking."""
    numbers.add(metrics.BUILD_INFO, 1, __version__, platform.python_version())
    numbers.add(metrics.START_TIME, STARTED_AT)
    numbers.add(metrics.WORKERS, 1)
    numbers.add(metrics.MAX_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    try:
        numbers.add(metrics.OPEN_FDS, sum(1 for _ in os.scandir("/proc/self/fd")))
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - no path object for each scrape
            pages = int(statm.read().split()[1])
    except OSError:
        return  # out of descriptors, for example: the other numbers matter then
    numbers.add(metrics.RESIDENT_BYTES, pages * resource.getpagesize())


def _store(services: Services, numbers: Numbers) -> None:
    store = services.store
    counts, memory, disk = store.counts, store.memory, services.disk
    for tier, result, count in (
        ("memory", "hit", counts.memory_hits),
        ("memory", "miss", counts.memory_misses),
        ("disk", "hit", counts.disk_hits),
        ("disk", "miss", counts.disk_misses),
    ):
        numbers.add(metrics.CACHE_REQUESTS, count, tier, result)
    numbers.add(metrics.CACHE_USED, memory.used_bytes, "memory")
    numbers.add(metrics.CACHE_BUDGET, memory.high_bytes, "memory")
    numbers.add(metrics.CACHE_EVICTIONS, memory.evicted, "memory")
    numbers.add(metrics.CACHE_EVICTIONS, disk.evicted, "disk")
    for name, count in list(disk.errors.items()):
        numbers.add(metrics.CACHE_WRITE_ERRORS, count, name)
    numbers.add(metrics.CACHE_CORRUPT, disk.corrupt)
    numbers.add(metrics.CACHE_BYPASSED, int(disk.bypassed))
    numbers.add(metrics.FETCHED_BYTES, counts.fetched_bytes)
    numbers.add(metrics.FETCHING_BYTES, store.admission.fetching_bytes)
    numbers.add(metrics.SENDING_BYTES, store.admission.sending_bytes)
    numbers.add(metrics.COALESCED, counts.coalesced)
    numbers.add(metrics.SHED, counts.shed)
    for outcome, count in (
        ("started", counts.prefetched),
        ("used", counts.prefetched_used),
        ("wasted", counts.prefetched_wasted),
    ):
        numbers.add(metrics.READAHEAD, count, outcome)
    numbers.add_histogram(metrics.INFLATE_SECONDS, counts.inflate)
    for kind in _INTEGRITY_CODES:
        count = counts.failures.get(kind, 0) + services.registrar.integrity_failures[kind]
        numbers.add(metrics.INTEGRITY_FAILURES, count, kind)


def _upstream(services: Services, numbers: Numbers) -> None:
    upstream = services.upstream
    for (host, outcome), histogram in upstream.attempts.items():
        numbers.add_histogram(metrics.UPSTREAM_SECONDS, histogram, host, outcome)
        numbers.add(metrics.UPSTREAM_THROTTLED, 0, host)
    for host, count in upstream.received_bytes.items():
        numbers.add(metrics.UPSTREAM_BYTES, count, host)
    for (host, reason), count in upstream.retries.items():
        numbers.add(metrics.UPSTREAM_RETRIES, count, host, reason)
    for host, count in upstream.throttled.items():
        numbers.add(metrics.UPSTREAM_THROTTLED, count, host)
    for host, state in upstream.breaker_states().items():
        numbers.add(metrics.BREAKER_STATE, _BREAKER_VALUES[state], host)
