"""Numbers, their sum over workers, and the format in which they are shown."""

import json
import math
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway import metrics
from gateway.metrics import DEFINITIONS, SECONDS_BOUNDS, Histogram, Numbers, expose, quantile
from tests.support.processes import require_program

times = st.floats(0, 100, allow_nan=False)


def numbers_with_everything() -> Numbers:
    numbers = Numbers()
    histogram = Histogram()
    histogram.observe(0.003)
    for definition in DEFINITIONS:
        labels = [f'a {label} "quoted"\n' for label in definition.labels]
        if definition.kind == "histogram":
            numbers.add_histogram(definition, histogram, *labels)
        else:
            numbers.add(definition, 3, *labels)
    return numbers


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.name)
def test_a_metric_is_named_as_prometheus_wants_it(definition):
    assert re.fullmatch(r"blockgate_[a-z][a-z0-9_]*", definition.name)
    assert definition.name.endswith("_total") == (definition.kind == "counter")
    assert not re.search(r"(milli|micro)seconds|_ms\b|kilobytes|_kb\b", definition.name)
    assert definition.help.endswith(".")
    assert not {"device", "digest", "path", "token", "name"} & set(definition.labels)


def test_names_are_unique():
    assert len({definition.name for definition in DEFINITIONS}) == len(DEFINITIONS)


@given(st.lists(times, min_size=1), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seconds, share):
    histogram = Histogram()
    for one in seconds:
        histogram.observe(one)
    true = sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]
    found = quantile(histogram.buckets, share)
    upper = next((bound for bound in SECONDS_BOUNDS if true <= bound), SECONDS_BOUNDS[-1])
    lower = max((bound for bound in SECONDS_BOUNDS if bound < min(true, SECONDS_BOUNDS[-1])), default=0)
    assert lower <= found <= upper


def test_nothing_counted_has_no_quantile():
    assert quantile(Histogram().buckets, 0.5) is None


@given(st.lists(times), st.lists(times))
def test_histograms_add_up(one, other):
    together, first, second = Histogram(), Histogram(), Histogram()
    for seconds in one:
        first.observe(seconds)
        together.observe(seconds)
    for seconds in other:
        second.observe(seconds)
        together.observe(seconds)
    first.add(second)
    assert first.buckets == together.buckets
    assert first.count == len(one) + len(other)
    assert first.seconds == pytest.approx(together.seconds)


def test_numbers_survive_being_written_and_read():
    numbers = numbers_with_everything()
    read = Numbers.load(json.loads(json.dumps(numbers.dump())))
    assert read.dump() == numbers.dump()


def test_counters_and_gauges_of_workers_add_up_and_the_highest_counts_once():
    total, other = Numbers(), Numbers()
    for numbers, used, fds in ((total, 10, 5), (other, 7, 9)):
        numbers.add(metrics.SHED, 2)
        numbers.add(metrics.CACHE_USED, used, "memory")
        numbers.add(metrics.OPEN_FDS, fds)
    total.absorb(other, alive=True)
    assert total.get(metrics.SHED) == 4
    assert total.get(metrics.CACHE_USED, "memory") == 17
    assert total.get(metrics.OPEN_FDS) == 9


def test_of_a_worker_that_ended_only_counters_count():
    total, ended = Numbers(), Numbers()
    ended.add(metrics.SHED, 2)
    ended.add(metrics.WORKERS, 1)
    ended.add_histogram(metrics.LOOP_LAG, Histogram([1] + [0] * len(SECONDS_BOUNDS), 0.0))
    total.absorb(ended, alive=False)
    assert total.get(metrics.SHED) == 2
    assert total.get(metrics.WORKERS) == 0
    assert total.histograms[metrics.LOOP_LAG.name][()].count == 1


def test_every_metric_is_exposed_in_both_formats_whatever_its_labels_hold():
    numbers = numbers_with_everything()
    plain, plain_type = expose(numbers, "text/plain")
    modern, modern_type = expose(numbers, "application/openmetrics-text; version=1.0.0")
    assert plain_type.startswith("text/plain")
    assert modern_type.startswith("application/openmetrics-text")
    for families in (parse_text(plain.decode()), parse_openmetrics(modern.decode())):
        shown = {family.name.removesuffix("_total"): family for family in families}
        assert set(shown) == {definition.name.removesuffix("_total") for definition in DEFINITIONS}
        assert all(family.samples and family.documentation for family in shown.values())


@pytest.mark.real
def test_promtool_finds_nothing_to_say():
    body, _ = expose(numbers_with_everything(), "")
    promtool = require_program("promtool", package="prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
