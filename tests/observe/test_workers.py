"""Snapshots that workers leave for each other."""

import os
import subprocess
import sys
import time

import pytest

from gateway import metrics
from gateway.metrics import Numbers
from gateway.observe.workers import Snapshot, Workers


def snapshot(shed: int) -> Snapshot:
    numbers = Numbers()
    numbers.add(metrics.SHED, shed)
    numbers.add(metrics.WORKERS, 1)
    return Snapshot(numbers=numbers.dump())


def shed(found: list[Snapshot]) -> int:
    total = Numbers()
    for each in found:
        total.absorb(Numbers.load(each.numbers), alive=each.alive)
    return int(total.get(metrics.SHED))


@pytest.fixture
def ended_pid():
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_worker_writes_nothing(tmp_path):
    workers = Workers(tmp_path / "run", shared=False)
    workers.publish(snapshot(1))
    workers.publish_reads("device", b"reads")
    assert list((tmp_path / "run").iterdir()) == []
    assert workers.others() == []
    assert workers.others_reads("device") == []


def test_workers_see_each_other_and_not_themselves(tmp_path):
    one, other = Workers(tmp_path, shared=True), Workers(tmp_path, shared=True)
    one.publish(snapshot(1))
    other.publish(snapshot(2))
    other.publish_reads("device", b"reads")
    assert shed(one.others()) == 2
    assert shed(other.others()) == 1
    assert one.others_reads("device") == [(b"reads", True)]
    assert other.others_reads("device") == []


def test_a_worker_that_fell_silent_is_not_alive(tmp_path, monkeypatch):
    one, other = Workers(tmp_path, shared=True), Workers(tmp_path, shared=True)
    other.publish(snapshot(2))
    (seen,) = one.others()
    assert seen.alive
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not seen.alive


def test_what_ended_workers_counted_is_kept_in_one_file(tmp_path, ended_pid):
    for number in range(3):
        ended = Workers(tmp_path, shared=True)
        ended.name = f"{ended_pid}-{number}"
        ended.publish(snapshot(10))
        ended.publish_reads("device", b"reads")
    one = Workers(tmp_path, shared=True)
    assert shed(one.others()) == 30
    one.fold()
    one.fold()
    assert shed(one.others()) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ended.json", "lock"]


def test_a_living_worker_is_not_folded(tmp_path):
    one, other = Workers(tmp_path, shared=True), Workers(tmp_path, shared=True)
    other.publish(snapshot(2))
    one.fold()
    assert (tmp_path / f"{other.name}.json").exists()
    assert other.name.startswith(f"{os.getpid()}-")


def test_a_damaged_file_is_passed_over(tmp_path):
    one = Workers(tmp_path, shared=True)
    (tmp_path / "1-1.json").write_text("{")
    assert one.others() == []
