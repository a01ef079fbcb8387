"""Which faults may pass: the table over every error there is, and the waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.recipes.faults import (
    DOUBTFUL_ATTEMPTS,
    LONGEST_WAIT_SECONDS,
    Fault,
    fault_of,
    wait_seconds,
)
from tests.support.layers import failure

DOUBTFUL = {
    errors.BuildFailed,
    errors.RegistryUnauthorized,
    errors.BlobNotFound,
    errors.AddressRefused,
    errors.RangeIgnored,
    errors.InvalidManifest,
    errors.ManifestMismatch,
    errors.BlobMismatch,
}
PASSING = {
    errors.RegistryUnreachable,
    errors.RegistryTimeout,
    errors.RegistryOverloaded,
    errors.WrongRange,
    errors.TruncatedBody,
    errors.Overloaded,
    errors.DeviceNotReady,
    errors.IndexAbsent,
    errors.IndexDamaged,
    errors.IndexBeingMade,
    errors.ArtifactDamaged,
    errors.LeaseLost,
}
LEAVES = sorted(errors.leaves(), key=lambda kind: kind.__name__)


def expected(kind):
    return Fault.DOUBTFUL if kind in DOUBTFUL else Fault.PASSING if kind in PASSING else Fault.FINAL


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_error_is_taken_as_the_table_says(kind):
    if not kind.__module__.startswith("gateway"):
        return
    assert fault_of(failure(kind)) is expected(kind)


def test_a_storage_error_passes_and_a_defect_is_doubtful():
    assert fault_of(failure(errors.StorageError)) is Fault.PASSING
    assert fault_of(RuntimeError("a defect")) is Fault.DOUBTFUL


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_what_can_pass_is_tried_for_ever_and_soon_again(attempt, doubts, jitter):
    wait = wait_seconds(failure(errors.RegistryUnreachable), attempt, doubts, jitter)
    assert 0.75 <= wait <= LONGEST_WAIT_SECONDS


def test_waits_grow():
    waits = [wait_seconds(failure(errors.StorageError), n, 0, 0.5) for n in range(1, 8)]
    assert waits == sorted(waits)
    assert waits[0] < 1.01 < LONGEST_WAIT_SECONDS * 0.8 < waits[-1]


def test_a_doubt_is_tried_a_few_times_in_about_twenty_seconds():
    error = failure(errors.RegistryUnauthorized)
    waits = [wait_seconds(error, n, n, 0.999) for n in range(1, DOUBTFUL_ATTEMPTS + 1)]
    assert waits[-1] is None
    assert None not in waits[:-1]
    assert 10 < sum(waits[:-1]) < 25


def test_doubts_count_only_themselves():
    assert wait_seconds(failure(errors.BlobMismatch), 100, 1, 0) is not None


def test_what_is_final_is_never_tried_again():
    assert wait_seconds(failure(errors.ImageNotFound), 1, 0, 0) is None


def test_what_the_other_side_asks_for_is_a_minimum():
    error = errors.RegistryOverloaded("later", retry_after_seconds=90)
    assert wait_seconds(error, 1, 0, 0) == 90
    error = errors.RegistryOverloaded("soon", retry_after_seconds=0.1)
    assert wait_seconds(error, 1, 0, 0) == 0.75
