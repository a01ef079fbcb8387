"""Hot ranges: one gateway worker against one nginx worker serving the decompressed tar (target 4)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from statistics import median

from benchmarks.layers import Layer
from benchmarks.report import Row
from benchmarks.servers import Gateway, cpu_seconds, nginx
from tests.support.processes import require_program

NOTES = (
    (
        "target 4: nginx sends with sendfile from the page cache, writes no access log and computes nothing; the gateway "
        "is Python; wrk, which makes each request anew in Lua, has the other processor"
    ),
)

CONNECTIONS = 16
_SCRIPT = """\
local size, length = {size}, {length}
local blocks = math.floor((size - length) / 4096)
function request()
  local start = math.random(0, blocks) * 4096
  return wrk.format("GET", nil, {{["Range"] = string.format("bytes=%d-%d", start, start + length - 1)}})
end
function init() math.randomseed(4) end
function done(summary)
  local e = summary.errors
  print(string.format("bad %d", e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def hot_ranges(
    gateway: Gateway, layer: Layer, device: str, folder: Path, *, seconds: int, rounds: int
) -> list[Row]:
    require_program("wrk")
    gateway.call("GET", f"/v1/devices/{device}/data")  # everything into memory
    rows = []
    with nginx(layer.tar.parent, folder / "hot", log=False) as (port, worker):
        urls = {
            "gateway": (gateway.data_url(device), gateway.pid),
            "nginx": (f"http://127.0.0.1:{port}/{layer.tar.name}", worker),
        }
        for label, length, wanted in (
            ("4 KiB", 4096, "≥0.45"),
            ("128 KiB", 1 << 17, "≥0.8"),
            ("1 MiB", 1 << 20, "≥0.8"),
        ):
            script = ranges_script(folder, layer.tar_size, length)
            rates: dict[str, list[float]] = {name: [] for name in urls}
            costs: dict[str, list[float]] = {name: [] for name in urls}
            for _ in range(rounds):
                for name, (url, pid) in urls.items():
                    before = cpu_seconds(pid)
                    rate, requests = load(url, script, seconds)
                    rates[name].append(rate)
                    costs[name].append((cpu_seconds(pid) - before) / requests * 1e6)
            detail = ", ".join(
                f"{name} {median(rates[name]):.0f}/s at {median(costs[name]):.0f} µs CPU" for name in urls
            )
            ratio = median(rates["gateway"]) / median(rates["nginx"])
            rows.append(
                Row(4, f"hot {label}, {CONNECTIONS} connections, vs nginx", ratio, wanted, "x", detail)
            )
    return rows


def ranges_script(folder: Path, size: int, length: int) -> Path:
    """What ``load`` asks for: random ranges of ``length`` bytes of the first ``size`` bytes."""
    script = folder / f"ranges-{length}.lua"
    script.write_text(_SCRIPT.format(size=size, length=length))
    return script


def load(url: str, script: Path, seconds: int) -> tuple[float, int]:
    """Requests per second of wrk, and requests in all. Raises ``RuntimeError`` when any of them failed."""
    argv = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    output = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    bad = re.search(r"^bad (\d+)", output, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([0-9.]+)", output, re.MULTILINE)
    requests = re.search(r"^\s*(\d+) requests in", output, re.MULTILINE)
    if not rate or not requests or bad is None or int(bad[1]):
        raise RuntimeError(f"{url}: wrk had trouble:\n{output}")
    return float(rate[1]), int(requests[1])
