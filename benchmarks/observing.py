"""What being watched costs: hot ranges of 4 KiB of one worker, with metrics and logs and without (target 10).

Gateways of the same layer take turns under wrk:

- *watched*: as it is run, log level info, JSON on a pipe that another process reads;
- *metrics only*: log level error;
- *unwatched*: no log, and a program from which the recording was taken out (``recording.py`` says how), for which there
  is no setting;
- *debug*: log level debug, the only one with an access log; every request then takes the long way and gets an id, and
  of reads one in 128 is written.

A ratio is of CPU time per request, which other work on the machine disturbs less than requests per second. Two processes
that run the very same code differ by some percent, for as long as they live. So there are two of each kind, whose times are
averaged in each round; and how much the two unwatched ones differ is told, for nothing smaller than that can be seen.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from statistics import mean, median

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
_TWINS = 2
# Whether it records, and its log level.
_WAYS = {
    "watched": ("on", "info"),
    "metrics only": ("on", "error"),
    "unwatched": ("off", "error"),
    "debug": ("on", "debug"),
}
_WANTED = {"watched": "≥0.95", "metrics only": "≥0.95", "debug": "≥0.7"}

Twins = list[Gateway]


def watching(layer: Layer, registry: Registry, folder: Path, *, seconds: int, rounds: int) -> list[Row]:
    """One row for each way but the unwatched: the median, over the rounds, of the unwatched cost by its own."""
    require_program("wrk")
    hot = min(layer.tar_size, _HOT_BYTES)
    script = ranges_script(folder, hot, _LENGTH)
    costs: dict[str, list[list[float]]] = {name: [] for name in _WAYS}
    with contextlib.ExitStack() as stack:
        running: dict[str, Twins] = {name: [] for name in _WAYS}
        for twin in range(_TWINS):
            for name, (recording, level) in _WAYS.items():
                place = folder / f"{name.replace(' ', '-')}-{twin}"
                each = stack.enter_context(
                    gateway(place, program=("benchmarks.recording", recording), log_level=level)
                )
                each.register("layer", registry.image)
                each.call("GET", "/v1/devices/layer/data", headers={"range": f"bytes=0-{hot - 1}"})
                running[name].append(each)
        for number in range(rounds):
            # Whoever is first or last in a round is so in half of them.
            for name in list(running)[:: -1 if number % 2 else 1]:
                costs[name].append([_cost(each, script, seconds) for each in running[name]])
    means = {name: [mean(pair) for pair in pairs] for name, pairs in costs.items()}
    one, other = (median(twin) for twin in zip(*costs["unwatched"], strict=True))
    said = f"unwatched {median(means['unwatched']):.1f} µs, its two processes differ by {abs(one / other - 1):.1%}"
    return [
        Row(
            10,
            f"hot 4 KiB, {CONNECTIONS} connections, {name} vs unwatched",
            median(base / own for base, own in zip(means["unwatched"], means[name], strict=True)),
            wanted,
            "x",
            f"{median(means[name]):.1f} µs CPU each; {said}",
        )
        for name, wanted in _WANTED.items()
    ]


def _cost(gateway: Gateway, script: Path, seconds: int) -> float:
    """Microseconds of CPU for each request."""
    before = cpu_seconds(gateway.pid)
    _, requests = load(gateway.data_url("layer"), script, seconds)
    return (cpu_seconds(gateway.pid) - before) / requests * 1e6
