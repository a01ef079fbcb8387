"""Write docs/metrics.md from gateway/metrics.py, or with --check fail when the committed page differs."""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.metrics import DEFINITIONS, SECONDS_BOUNDS

TARGET = Path(__file__).resolve().parent.parent / "docs/metrics.md"
KINDS = {
    "counter": "counter",
    "gauge": "gauge, sum of the workers",
    "highest": "gauge, highest of the workers",
    "histogram": "histogram",
}

HEAD = """# Metrics

<!-- Made by scripts/metrics_docs.py from gateway/metrics.py: change that, then run it. -->

`GET /metrics` of the gateway, in Prometheus' text format; whichever worker answers, it answers for all. Where the gateway
wants tokens, a token of role `metrics` may read this and nothing else.

[deploy/prometheus/alerts.yml](../deploy/prometheus/alerts.yml) has alert rules, each with a page in
[runbooks/](runbooks); [deploy/grafana/blockgate.json](../deploy/grafana/blockgate.json) a dashboard. `docker compose up`
brings both up. The gateway's own dashboard at `/` draws the same numbers from `GET /v1/stats`, without Prometheus.

Some questions as queries:

| question | query |
|---|---|
| how much of what is read is in memory? | `sum by (source) (rate(blockgate_read_bytes_total[5m]))` |
| how long do reads take? | `histogram_quantile(0.99, sum by (le, route) (rate(blockgate_request_seconds_bucket[5m])))` |
| and registries? | `histogram_quantile(0.9, sum by (registry, le) (rate(blockgate_upstream_seconds_bucket[5m])))` |
| does anything arrive that was not promised? | `increase(blockgate_integrity_failures_total[1h])` |

"""


def page() -> str:
    """docs/metrics.md."""
    lines = ["| name | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in DEFINITIONS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {KINDS[metric.kind]} | {labels} | {metric.help.rstrip('.')} |")
    bounds = ", ".join(f"{bound:g}" for bound in SECONDS_BOUNDS)
    return HEAD + "\n".join(lines) + f"\n\nBuckets of histograms, in seconds: {bounds}.\n"


def main() -> int:
    """Exit status 1 when --check finds a difference."""
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text() != page():
            print(
                f"docs/{TARGET.name} is not what the code says; run: python scripts/metrics_docs.py",
                file=sys.stderr,
            )
            return 1
        return 0
    TARGET.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
