"""What being watched costs: hot ranges of 4 KiB of one worker, with metrics and logs and without (target 10).

Four gateways of the same layer take turns under wrk:

- *watched*: as it is run, log level info, JSON on a pipe that another process reads;
- *metrics only*: log level error;
- *unwatched*: no log, and a program from which the recording was taken out (``unobserved.py`` says how), for which there
  is no setting;
- *debug*: log level debug, the only one with an access log; every request then takes the long way and gets an id, and
  of reads one in 128 is written.

A ratio is of CPU time per request, which other work on the machine disturbs less than requests per second.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from statistics import median

from benchmarks.hot import CONNECTIONS, load, ranges_script
from benchmarks.layers import Layer
from benchmarks.report import Row
from benchmarks.servers import Gateway, Registry, cpu_seconds, gateway
from tests.support.processes import require_program

NOTES = (
    (
        "target 10: at level info a read that succeeds writes no line, so the log's cost is that of deciding so; nobody "
        "scrapes /metrics or looks at the dashboard meanwhile"
    ),
)

_LENGTH = 4096
_HOT_BYTES = 64 << 20
# What is run, and its log level.
_WAYS = {
    "watched": ("gateway", "info"),
    "metrics only": ("gateway", "error"),
    "unwatched": ("benchmarks.unobserved", "error"),
    "debug": ("gateway", "debug"),
}
_WANTED = {"watched": "≥0.95", "metrics only": "≥0.95", "debug": "≥0.7"}


def watching(layer: Layer, registry: Registry, folder: Path, *, seconds: int, rounds: int) -> list[Row]:
    """One row for each way but the last: its share of the requests per CPU second of a gateway that is not watched."""
    require_program("wrk")
    rates: dict[str, list[float]] = {name: [] for name in _WAYS}
    costs: dict[str, list[float]] = {name: [] for name in _WAYS}
    hot = min(layer.tar_size, _HOT_BYTES)
    script = ranges_script(folder, hot, _LENGTH)
    with contextlib.ExitStack() as stack:
        running: dict[str, Gateway] = {}
        for name, (module, level) in _WAYS.items():
            place = folder / name.replace(" ", "-")
            running[name] = stack.enter_context(gateway(place, module=module, log_level=level))
            running[name].register("layer", registry.image)
            running[name].call("GET", "/v1/devices/layer/data", headers={"range": f"bytes=0-{hot - 1}"})
        for _ in range(rounds):
            for name, each in running.items():
                before = cpu_seconds(each.pid)
                rate, requests = load(each.data_url("layer"), script, seconds)
                rates[name].append(rate)
                costs[name].append((cpu_seconds(each.pid) - before) / requests * 1e6)
    base = median(costs["unwatched"])
    said = {name: f"{median(rates[name]):.0f}/s at {median(costs[name]):.1f} µs CPU" for name in _WAYS}
    return [
        Row(
            10,
            f"hot 4 KiB, {CONNECTIONS} connections, {name} vs unwatched",
            base / median(costs[name]),
            wanted,
            "x",
            f"{said[name]}; unwatched {said['unwatched']}",
        )
        for name, wanted in _WANTED.items()
    ]
