"""The disk tier: whole files are hits, everything else is a miss; failures pause writing and nothing more."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.layers.key import LayerKey, SpanKey
from gateway.spans import disk as module
from gateway.spans.disk import SpanFiles

BLOB = "sha256:" + "ab" * 32
LAYER, OTHER = LayerKey(BLOB, "gzip-1-v2"), LayerKey(BLOB, "gzip-2-v2")
KEY = SpanKey(*LAYER, 7)
DATA = b"some decoded bytes" * 50
DIGEST = hashlib.sha256(DATA).digest()
HEADER_BYTES = 80


class Clock:
    """Stands for ``time.monotonic``."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    @staticmethod
    def time():
        return 1_700_000_000.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def tier(tmp_path):
    return SpanFiles(tmp_path / "cache", 1 << 20)


def files(tier):
    return [path for path in tier.folder.rglob("*") if path.is_file() and path.name != "evict.lock"]


def fail_writes(monkeypatch, number):
    def writev(_fd, _pieces):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "writev", writev)


def test_what_was_written_is_read(tier):
    assert tier.read(KEY, DIGEST) is None
    assert tier.write(KEY, DATA, DIGEST)
    assert tier.read(KEY, DIGEST) == DATA
    assert tier.held(LAYER) == {7}
    assert tier.held(OTHER) == set()
    assert tier.used_bytes == len(DATA) + HEADER_BYTES == tier.measure()


def test_memoryviews_and_empty_spans_are_written_too(tier):
    empty = hashlib.sha256(b"").digest()
    assert tier.write(KEY, memoryview(DATA), DIGEST)
    assert tier.write(KEY._replace(span=8), b"", empty)
    assert tier.read(KEY, DIGEST) == DATA
    assert tier.read(KEY._replace(span=8), empty) == b""


def test_another_process_finds_what_was_written(tier):
    tier.write(KEY, DATA, DIGEST)
    assert SpanFiles(tier.folder, 1 << 20).read(KEY, DIGEST) == DATA


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(DATA) + HEADER_BYTES - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_makes_a_miss_and_removes_the_file(tmp_path_factory, at, bit):
    tier = SpanFiles(tmp_path_factory.mktemp("cache"), 1 << 20)
    tier.write(KEY, DATA, DIGEST)
    (path,) = files(tier)
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
    assert tier.read(KEY, DIGEST) is None
    assert not path.exists()
    assert tier.corrupt == 1


@pytest.mark.parametrize("length", [0, 1, 79, 80, 81, HEADER_BYTES + len(DATA) - 1])
def test_a_torn_file_is_a_miss_and_is_removed(tier, length):
    tier.write(KEY, DATA, DIGEST)
    (path,) = files(tier)
    os.truncate(path, length)
    assert tier.read(KEY, DIGEST) is None
    assert not path.exists()


def test_a_file_with_bytes_behind_it_is_a_miss(tier):
    tier.write(KEY, DATA, DIGEST)
    (path,) = files(tier)
    path.write_bytes(path.read_bytes() + b"x")
    assert tier.read(KEY, DIGEST) is None


def test_a_file_of_absurd_length_is_a_miss_and_is_not_read(tier):
    tier.write(KEY, DATA, DIGEST)
    (path,) = files(tier)
    os.truncate(path, 1 << 40)
    assert tier.read(KEY, DIGEST) is None
    assert not path.exists()


@pytest.mark.parametrize(
    "other",
    [KEY._replace(span=8), KEY._replace(cut=OTHER.cut), KEY._replace(blob="sha256:" + "cd" * 32)],
    ids=["span", "cut", "blob"],
)
def test_a_file_of_another_key_in_its_place_is_a_miss(tier, other):
    tier.write(KEY, DATA, DIGEST)
    tier.write(other, DATA, DIGEST)
    tier._path(KEY).replace(tier._path(other))
    assert tier.read(other, DIGEST) is None
    assert not tier._path(other).exists()


def test_other_content_than_the_index_proves_is_a_miss(tier):
    wrong = b"other bytes"
    tier.write(KEY, wrong, hashlib.sha256(wrong).digest())
    assert tier.read(KEY, DIGEST) is None
    assert tier.corrupt == 1


def test_a_damaged_file_is_replaced_by_the_next_write(tier):
    tier.write(KEY, DATA, DIGEST)
    os.truncate(tier._path(KEY), 50)
    assert tier.read(KEY, DIGEST) is None
    assert tier.write(KEY, DATA, DIGEST)
    assert tier.read(KEY, DIGEST) == DATA


def test_a_folder_in_the_place_of_a_file_is_a_miss(tier):
    tier._path(KEY).mkdir(parents=True)
    assert tier.read(KEY, DIGEST) is None
    assert not tier.write(KEY, DATA, DIGEST)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_is_counted_and_leaves_nothing(tier, monkeypatch, number):
    fail_writes(monkeypatch, number)
    assert not tier.write(KEY, DATA, DIGEST)
    assert tier.errors == {errno.errorcode[number]: 1}
    assert tier.bypassed
    assert files(tier) == []


def test_a_write_that_is_cut_short_counts_as_a_full_disk(tier, monkeypatch):
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, pieces: whole(fd, [pieces[0]]))
    assert not tier.write(KEY, DATA, DIGEST)
    assert tier.errors == {"ENOSPC": 1}
    assert files(tier) == []


def test_reading_goes_on_while_writing_pauses(tier, monkeypatch):
    tier.write(KEY, DATA, DIGEST)
    fail_writes(monkeypatch, errno.ENOSPC)
    tier.write(KEY._replace(span=8), DATA, DIGEST)
    assert tier.bypassed
    assert tier.read(KEY, DIGEST) == DATA


def test_writing_pauses_longer_each_time_and_recovers_by_itself(tier, monkeypatch, clock):
    attempts = []

    def writev(_fd, _pieces):
        attempts.append(clock.now)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as full:
        full.setattr(os, "writev", writev)
        for _ in range(1200):
            tier.write(KEY, DATA, DIGEST)
            clock.now += 0.1
    pauses = [round(b - a) for a, b in pairwise(attempts)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    clock.now += 30
    assert not tier.bypassed
    assert tier.write(KEY, DATA, DIGEST)
    # The next failure begins with a short pause again.
    fail_writes(monkeypatch, errno.EIO)
    tier.write(KEY, DATA, DIGEST)
    clock.now += 1
    assert not tier.bypassed


def test_writes_that_fail_together_count_as_one_reason_to_pause(tier, monkeypatch, clock):
    together = threading.Barrier(8)

    def writev(_fd, _pieces):
        together.wait(10)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", writev)
    threads = [
        threading.Thread(target=tier.write, args=(KEY._replace(span=i), DATA, DIGEST)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tier.errors == {"ENOSPC": 8}
    clock.now += 1
    assert not tier.bypassed


def test_a_cache_folder_that_cannot_be_made_leaves_the_store_without_a_disk(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    tier = SpanFiles(tmp_path / "file" / "cache", 1 << 20)
    assert tier.read(KEY, DIGEST) is None
    assert not tier.write(KEY, DATA, DIGEST)
    assert tier.bypassed
    assert tier.drop() == 0


def test_a_write_is_counted_once_at_every_moment(tier, monkeypatch):
    measured = []
    threads = []

    rename = module.Path.rename

    def rename_and_let_somebody_measure(self, target):
        rename(self, target)
        thread = threading.Thread(target=lambda: measured.append(tier.measure()))
        thread.start()
        threads.append(thread)
        thread.join(0.2)

    monkeypatch.setattr(module.Path, "rename", rename_and_let_somebody_measure)
    assert tier.write(KEY, DATA, DIGEST)
    for thread in threads:
        thread.join()
    assert measured == [len(DATA) + HEADER_BYTES]


def test_a_span_larger_than_the_budget_is_not_written(tmp_path):
    tier = SpanFiles(tmp_path, len(DATA) + HEADER_BYTES - 1)
    assert not tier.write(KEY, DATA, DIGEST)
    assert files(tier) == []


def test_the_longest_unused_are_evicted_first(tmp_path):
    each = len(DATA) + HEADER_BYTES
    tier = SpanFiles(tmp_path, 4 * each, 2 * each)
    keys = [KEY._replace(span=i) for i in range(5)]
    for age, key in enumerate(keys[:4]):
        tier.write(key, DATA, DIGEST)
        os.utime(tier._path(key), (1_000_000 + age, 1_000_000 + age))
    # A hit makes the oldest one the youngest.
    assert tier.read(keys[0], DIGEST) == DATA
    tier.write(keys[4], DATA, DIGEST)
    assert tier.held(LAYER) == {0, 4}
    assert tier.evicted == 3
    assert tier.measure() == 2 * each


def test_several_sharers_stay_below_the_budget_together(tmp_path):
    each = len(DATA) + HEADER_BYTES
    budget = 64 * each
    tiers = [SpanFiles(tmp_path, budget, sharers=4) for _ in range(4)]
    for number in range(400):
        tiers[number % 4 if number % 3 else 0].write(KEY._replace(span=number), DATA, DIGEST)
        assert sum(path.stat().st_size for path in files(tiers[0])) <= budget


def test_drop_removes_everything(tier):
    tier.write(KEY, DATA, DIGEST)
    tier.write(KEY._replace(cut=OTHER.cut), DATA, DIGEST)
    assert tier.drop() == 2 * (len(DATA) + HEADER_BYTES)
    assert tier.read(KEY, DIGEST) is None
    assert files(tier) == []
    assert tier.used_bytes == 0


def test_a_span_that_was_read_just_now_is_not_touched_again(tier):
    tier.write(KEY, DATA, DIGEST)
    before = tier._path(KEY).stat().st_mtime_ns
    tier.read(KEY, DIGEST)
    assert tier._path(KEY).stat().st_mtime_ns == before


def test_a_file_that_cannot_be_read_is_a_miss_and_stays(tier, monkeypatch):
    tier.write(KEY, DATA, DIGEST)

    def fstat(_fd):
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fstat", fstat)
        assert tier.read(KEY, DIGEST) is None
    assert tier.read(KEY, DIGEST) == DATA


def test_a_folder_that_somebody_emptied_is_made_again(tmp_path):
    each = len(DATA) + HEADER_BYTES
    tier = SpanFiles(tmp_path / "cache", 2 * each)
    for number in range(5):
        shutil.rmtree(tier.folder)
        assert tier.write(KEY._replace(span=number), DATA, DIGEST)
        assert tier.held(LAYER) == {number}
    assert not tier.errors


def test_a_process_that_hangs_as_it_evicts_holds_up_nobody(tmp_path):
    """Reads share the threads on which writes would wait."""
    each = len(DATA) + HEADER_BYTES
    tier = SpanFiles(tmp_path, 2 * each)
    for number in range(2):
        tier.write(KEY._replace(span=number), DATA, DIGEST)
    with (tmp_path / "evict.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not tier.write(KEY._replace(span=2), DATA, DIGEST)
    assert not tier.errors
    assert not tier.bypassed
    assert tier.write(KEY._replace(span=2), DATA, DIGEST)


def test_what_is_written_while_all_is_dropped_is_counted(tier, monkeypatch):
    tier.write(KEY._replace(span=8), DATA, DIGEST)
    looks, threads = [], []
    look = tier._files

    def look_and_let_somebody_write():
        found = look()
        looks.append(len(found))
        if looks == [1, 0]:  # all is removed, and is being measured
            thread = threading.Thread(target=tier.write, args=(KEY, DATA, DIGEST))
            thread.start()
            threads.append(thread)
            thread.join(0.2)
        return found

    with monkeypatch.context() as slow:
        slow.setattr(tier, "_files", look_and_let_somebody_write)
        tier.drop()
        for thread in threads:
            thread.join()
    assert threads
    assert tier.used_bytes == len(DATA) + HEADER_BYTES == tier.measure()


def test_what_a_write_could_not_remove_when_the_disk_turned_read_only_is_removed_later(tmp_path, monkeypatch):
    files = SpanFiles(tmp_path, 1 << 20)
    key, data = SpanKey("sha256:" + "a" * 64, "cut", 0), b"x" * 100

    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        patch.setattr(Path, "unlink", refuse)
        assert not files.write(key, data, hashlib.sha256(data).digest())
    assert len(list(files.scratch.iterdir())) == 1
    files._bypass_until = 0.0
    assert files.write(key, data, hashlib.sha256(data).digest())
    assert list(files.scratch.iterdir()) == []
