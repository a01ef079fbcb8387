"""How a device comes to be readable, as a client decides it: without a clock, without a gateway."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockgate.calls import DeviceUnusable, GatewayWaits, Readiness

FAULT = {"code": "registry_unreachable", "detail": "registry.internal refuses connections"}


def indexing(phase: str = "download", done: int = 0, total: int = 100) -> dict:
    return {"name": "a", "state": "indexing", "progress": {"phase": phase, "done": done, "total": total}}


def waiting() -> dict:
    device = indexing("waiting")
    device["progress"] |= {"error": FAULT, "attempt": 1, "retry_at": "2026-01-01T00:00:00Z"}
    return device


def looks(readiness: Readiness, devices) -> float:
    """Seconds that were paused for ``devices``, until the readiness gave up."""
    paused = 0.0
    with pytest.raises(GatewayWaits) as caught:
        for device in devices:
            paused += readiness.pause_after(device)
    assert "registry.internal refuses connections" in caught.value.detail
    assert "goes on trying" in caught.value.detail
    return paused


def test_a_ready_device_is_waited_for_no_longer():
    assert Readiness(0).pause_after({"name": "a", "state": "ready"}) is None


@pytest.mark.parametrize("state", ["failed", "quarantined", "something new"])
def test_a_device_that_will_never_be_ready_says_why(state):
    device = {"name": "a", "state": state, "error": FAULT}
    with pytest.raises(DeviceUnusable, match=r"refuses connections \[registry_unreachable\]") as caught:
        Readiness(60).pause_after(device)
    assert caught.value.device is device


@given(st.integers(0, 600))
def test_patience_with_a_fault_ends_and_not_before_it_is_over(patience):
    paused = looks(Readiness(patience), itertools.repeat(waiting()))
    assert patience <= paused <= patience + 1


def test_indexing_may_take_as_long_as_it_takes():
    readiness = Readiness(1)
    for _ in range(10_000):
        assert readiness.pause_after(indexing(done=5)) is not None


def test_an_attempt_that_comes_no_further_does_not_renew_patience():
    attempt = [indexing("resolving"), indexing(done=50), waiting(), waiting()]
    for patience in (10, 10.5, 11, 11.5):  # it ends in a wait or in an attempt: either way the fault is told
        assert looks(Readiness(patience), itertools.cycle(attempt)) < 15


def test_an_attempt_that_comes_further_does():
    readiness = Readiness(2)
    for done in range(1, 200):
        for device in (indexing(done=done), waiting(), waiting()):
            assert readiness.pause_after(device) is not None


def test_each_look_is_reported_with_the_fault_that_is_waited_for():
    told = []
    readiness = Readiness(60, lambda *step: told.append(step))
    for device in (indexing(done=3), waiting(), {"name": "a", "state": "indexing", "progress": None}):
        readiness.pause_after(device)
    assert told[0] == ("download", 3, 100)
    assert told[1][0] == f"waiting ({FAULT['detail']} [{FAULT['code']}])"
    assert told[2] == ("indexing", 0, 0)
