"""Alert rules, the Grafana dashboard and the runbooks name what exists, and do what they say."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from gateway.metrics import DEFINITIONS
from tests.support.processes import require_program

REPOSITORY = Path(__file__).parents[2]
ALERTS = REPOSITORY / "deploy/prometheus/alerts.yml"
ALERT_TESTS = REPOSITORY / "deploy/prometheus/alerts.test.yml"
GRAFANA = json.loads((REPOSITORY / "deploy/grafana/blockgate.json").read_text())
RUNBOOKS = REPOSITORY / "docs/runbooks"

QUERIES = [target["expr"] for panel in GRAFANA["panels"] for target in panel["targets"]]
RULES = [
    match[1] or match[2] for match in re.finditer(r"expr: (?:\|\n((?: {10,}.*\n)+)|(.+))", ALERTS.read_text())
]
NAMES = re.findall(r"- alert: (\w+)", ALERTS.read_text())
# What Prometheus itself adds to each series.
ADDED_LABELS = {"instance", "job"}


def series_of(definition):
    if definition.kind != "histogram":
        return {definition.name: set(definition.labels)}
    labels = set(definition.labels)
    return {
        f"{definition.name}_bucket": labels | {"le"},
        f"{definition.name}_count": labels,
        f"{definition.name}_sum": labels,
    }


KNOWN = {name: labels for definition in DEFINITIONS for name, labels in series_of(definition).items()}


@pytest.mark.parametrize("query", [*QUERIES, *RULES])
def test_a_query_names_series_and_labels_that_exist(query):
    unquoted = re.sub(r'"[^"]*"', '""', query)
    named = re.findall(r"\bblockgate_\w+", unquoted)
    assert named or "up{" in query
    assert set(named) <= set(KNOWN)
    for name, matchers in re.findall(r"\b(blockgate_\w+)\{([^}]*)\}", unquoted):
        assert set(re.findall(r"(\w+)\s*=", matchers)) <= KNOWN[name] | ADDED_LABELS
    every = set().union(*(KNOWN[name] for name in named)) | ADDED_LABELS
    for grouped in re.findall(r"\bby \(([^)]*)\)", unquoted):
        assert {label.strip() for label in grouped.split(",")} <= every


def test_every_metric_is_on_the_dashboard_but_for_what_says_what_runs():
    shown = {name for query in QUERIES for name in re.findall(r"\bblockgate_\w+", query)}
    missing = {d.name for d in DEFINITIONS if not shown & set(series_of(d))}
    assert missing == {"blockgate_build_info", "blockgate_start_time_seconds"}


def test_routes_in_queries_are_routes():
    routes = {match for query in [*QUERIES, *RULES] for match in re.findall(r'route="([^"]*)"', query)}
    assert routes == {"/v1/devices/{name}/data"}


def test_every_alert_has_a_page_and_every_page_an_alert():
    assert sorted(path.stem for path in RUNBOOKS.glob("*.md")) == sorted(NAMES)
    for name in NAMES:
        assert f"runbook: docs/runbooks/{name}.md" in ALERTS.read_text()
        text = (RUNBOOKS / f"{name}.md").read_text()
        assert text.startswith(f"# {name}\n")
        assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == {
            "What it means",
            "Where to look",
            "What to do",
        }
        assert set(re.findall(r"`(blockgate_\w+)`", text)) <= set(KNOWN) | {d.name for d in DEFINITIONS}
        assert set(re.findall(r"\b(Blockgate[A-Z]\w+)", text)) <= set(NAMES)


def test_every_alert_is_tested_to_fire_and_to_be_silent():
    text = ALERT_TESTS.read_text()
    for name in NAMES:
        assert re.search(rf"alertname: {name}\n\s+exp_alerts:", text), f"{name} is never tested to fire"
        assert f"alertname: {name} }}" in text, f"{name} is never tested to be silent"


@pytest.mark.real
@pytest.mark.parametrize("command", [["check", "rules", str(ALERTS)], ["test", "rules", str(ALERT_TESTS)]])
def test_promtool_agrees(command):
    promtool = require_program("promtool", package="prometheus")
    done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real
def test_prometheus_understands_the_dashboards_queries(tmp_path):
    replaced = [query.replace("$__rate_interval", "5m") for query in QUERIES]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(replaced)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool = require_program("promtool", package="prometheus")
    done = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(QUERIES)} rules found" in done.stdout


def test_panels_do_not_overlap_and_have_titles():
    taken = set()
    for panel in GRAFANA["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"]
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
