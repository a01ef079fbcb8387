"""Span locks: between processes they exclude, within one they do not, and the kernel cleans up."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.layers.key import SpanKey
from gateway.spans.disk import DiskTier, SpanFiles
from gateway.spans.locks import SpanLocks

KEY = SpanKey("sha256:aa", "gzip-1-v2", 3)
HOLDER = """
import asyncio, sys
from pathlib import Path
from gateway.layers.key import SpanKey
from gateway.spans.locks import SpanLocks

async def main():
    locks = SpanLocks(Path(sys.argv[1]))
    async with locks.hold(SpanKey("sha256:aa", "gzip-1-v2", 3)) as waited:
        print("held", waited, flush=True)
        sys.stdin.readline()
    print("released", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


@pytest.fixture
def locks(tmp_path):
    locks = SpanLocks(tmp_path / "locks")
    yield locks
    locks.close()


@pytest.fixture
def holder(tmp_path, locks):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "locks")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held False\n"
        yield process
        process.kill()


async def is_free(locks, key=KEY):
    try:
        async with asyncio.timeout(0.05), locks.hold(key):
            return True
    except TimeoutError:
        return False


async def test_a_free_lock_is_had_without_waiting(locks):
    async with locks.hold(KEY) as waited:
        assert waited is False


async def test_two_processes_exclude_each_other_until_one_lets_go(locks, holder):
    assert not await is_free(locks)
    assert await is_free(locks, KEY._replace(span=4))
    holder.stdin.write("\n")
    holder.stdin.flush()
    async with asyncio.timeout(20), locks.hold(KEY):
        assert holder.stdout.readline() == "released\n"


async def test_whoever_had_to_wait_is_told_so(locks, holder):
    async def wait():
        async with locks.hold(KEY) as waited:
            return waited

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert await asyncio.wait_for(waiting, 20) is True


async def test_a_killed_process_leaves_no_lock(locks, holder):
    assert not await is_free(locks)
    holder.kill()
    await asyncio.to_thread(holder.wait)
    assert await is_free(locks)


async def test_a_cancelled_wait_leaves_nothing_locked(locks, holder):
    waiting = asyncio.create_task(is_free(locks))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    holder.kill()
    await asyncio.to_thread(holder.wait)
    assert await is_free(locks)


async def test_within_a_process_nobody_is_excluded(locks):
    """That is the table of fetches in flight's business, as the module says."""
    async with asyncio.timeout(5), locks.hold(KEY), locks.hold(KEY) as waited:
        assert waited is False


async def test_a_failure_under_the_lock_releases_it(locks, tmp_path):
    with pytest.raises(RuntimeError, match="under the lock"):
        async with locks.hold(KEY):
            raise RuntimeError("under the lock")
    # Another description of the same file, as another process has one.
    other = SpanLocks(tmp_path / "locks")
    assert await is_free(other)
    other.close()


async def test_closing_another_description_of_the_file_releases_nothing(locks, tmp_path):
    async with locks.hold(KEY):
        SpanLocks(tmp_path / "locks").close()
        third = SpanLocks(tmp_path / "locks")
        assert not await is_free(third)
        third.close()


async def test_a_single_process_needs_no_locks(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        tier = DiskTier(SpanFiles(tmp_path, 1 << 20), None, executor)
        async with asyncio.timeout(5), tier.alone(KEY) as first, tier.alone(KEY) as second:
            # Nobody else can have written the span since it was missed.
            assert (first, second) == (False, False)


async def test_who_holds_the_lock_of_a_shared_folder_looks_there_once_more(tmp_path, locks):
    with ThreadPoolExecutor(1) as executor:
        tier = DiskTier(SpanFiles(tmp_path, 1 << 20), locks, executor)
        other = SpanLocks(tmp_path / "locks")
        async with tier.alone(KEY) as look_again:
            assert look_again
            assert not await is_free(other)
        assert await is_free(other)
        other.close()


async def test_a_kernel_without_a_lock_to_give_costs_no_read(locks, monkeypatch):
    def fail(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", fail)
    async with asyncio.timeout(5), locks.hold(KEY) as waited:
        assert waited is False
