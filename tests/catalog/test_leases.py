"""Leases: one holder at a time among all processes; a zombie is told, and what it commits is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.catalog.leases import HeldLease
from gateway.catalog.upkeep import release_leases
from gateway.errors import LeaseLost, StorageError
from gateway.layers.index import IndexRow
from tests.catalog.rows import KEY, index

_TAKEN = "UPDATE leases SET owner = 'somebody', token = token + 1"
_ENDED = "UPDATE leases SET until = 0"


@pytest.fixture
def quick(monkeypatch):
    """Renewals and polls come at once."""
    monkeypatch.setattr("gateway.catalog.leases._FIRST_POLL_SECONDS", 0.001)
    monkeypatch.setattr("gateway.catalog.leases._LONGEST_POLL_SECONDS", 0.002)


def eager(leases):
    leases._pause = 0.01
    return leases


async def test_a_lease_has_one_holder(catalog, open_catalog):
    other = open_catalog()
    lease = await catalog.leases.claim("work")
    assert lease == HeldLease("work", "folder.0.", 1)
    assert await other.leases.claim("work") is None
    assert await catalog.leases.claim("work") is None, "not even its holder gets it twice"
    assert await other.leases.claim("other work") is not None


async def test_the_token_grows_with_each_holder(catalog, open_catalog):
    other = open_catalog()
    tokens = []
    for each in (catalog, other, catalog):
        async with each.lease("work") as lease:
            tokens.append(lease.token)
    assert tokens == [1, 2, 3]


async def test_who_waits_gets_it_when_it_is_released(catalog, open_catalog, quick):
    other = open_catalog()
    order = []

    async def work(which, name):
        async with which.lease("work"):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(
        *(work(which, name) for name, which in (("a", catalog), ("b", other), ("c", catalog)))
    )
    assert [each.split()[0] for each in order[::2]] == [each.split()[0] for each in order[1::2]]


async def test_an_error_in_the_block_comes_out_and_the_lease_is_released(catalog):
    with pytest.raises(ZeroDivisionError):
        async with catalog.lease("work"):
            raise ZeroDivisionError
    assert await catalog.leases.claim("work") is not None


async def test_one_that_ran_out_is_given_to_the_next(catalog, open_catalog, execute):
    other = open_catalog()
    await catalog.leases.claim("work")
    execute(_ENDED)
    assert (await other.leases.claim("work")).token == 2


async def test_a_lease_is_renewed_while_the_block_runs(catalog, execute):
    async with eager(catalog.leases).hold("work"):
        execute("UPDATE leases SET until = 1")
        async with asyncio.timeout(20):
            while execute("SELECT until FROM leases")[0][0] <= 1:
                await asyncio.sleep(0.005)


async def test_losing_it_comes_out_of_the_block(catalog, execute):
    with pytest.raises(LeaseLost, match="work"):
        async with eager(catalog.leases).hold("work"):
            execute(_TAKEN)
            await asyncio.Event().wait()
    assert asyncio.current_task().cancelling() == 0


async def test_who_is_cancelled_while_it_loses_the_lease_is_cancelled(catalog, monkeypatch):
    leases = eager(catalog.leases)
    holder: asyncio.Task[None]
    real = leases._set

    async def setting(statement, lease):
        if statement is leases._renew:
            holder.cancel()  # somebody else's, at the same moment
            return 0
        return await real(statement, lease)

    monkeypatch.setattr(leases, "_set", setting)

    async def work():
        async with leases.hold("work"):
            await asyncio.Event().wait()

    holder = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await holder
    assert holder.cancelled()


async def test_a_database_that_does_not_answer_for_a_moment_costs_no_lease(catalog, monkeypatch):
    leases = catalog.leases
    leases._pause = 0.01
    real, failed, renewed = leases._set, [], asyncio.Event()

    async def setting(statement, lease):
        if statement is leases._renew and not failed:
            failed.append(lease)
            raise StorageError("away")
        if statement is leases._renew:
            renewed.set()
        return await real(statement, lease) or 1

    monkeypatch.setattr(leases, "_set", setting)
    async with leases.hold("work"):
        await asyncio.wait_for(renewed.wait(), 20)
    assert failed


async def test_a_zombie_commits_nothing(catalog, open_catalog, execute):
    other = open_catalog()
    name = f"layer {KEY}"
    late = await catalog.leases.claim(name)
    execute(_ENDED)
    async with other.lease(name) as lease:
        await other.commit_index(KEY, IndexRow(attempt="new", sha256="6" * 64, bytes=1), lease)
    with pytest.raises(LeaseLost):
        await catalog.commit_index(KEY, IndexRow(attempt="late", sha256="7" * 64, bytes=1), late)
    assert (await catalog.index_row(KEY)).attempt == "new"


async def test_one_that_ran_out_and_was_taken_by_nobody_still_commits(catalog, execute):
    lease = await catalog.leases.claim("work")
    execute(_ENDED)
    await catalog.commit_index(KEY, IndexRow(attempt="1", sha256="6" * 64, bytes=1), lease)
    assert (await catalog.index_row(KEY)).attempt == "1"


async def test_an_equal_index_changes_nothing_where_other_hosts_have_their_own_copy(database, catalog):
    await index(catalog, attempt="1")
    await index(catalog, attempt="2")
    expected = "2" if database.startswith("sqlite") else "1"
    assert (await catalog.index_row(KEY)).attempt == expected


async def test_leases_of_a_dead_process_are_released_by_its_name(database, catalog, open_catalog):
    other = open_catalog()
    await catalog.leases.claim("one")
    await other.leases.claim("two")
    release_leases(database, "folder.0.")
    assert await other.leases.claim("one") is not None
    assert await catalog.leases.claim("two") is None


_WORKER = """
import asyncio, os, sys, pathlib
from gateway.catalog import leases
from gateway.catalog.database import Database
leases._FIRST_POLL_SECONDS, leases._LONGEST_POLL_SECONDS = 0.001, 0.003
url, folder, turns = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])

async def main():
    held = leases.Leases(Database(url), f"{os.getpid()}.")
    for _ in range(turns):
        async with held.hold("work"):
            mark = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails where two are inside
            os.close(mark)
            counter = folder / "counter"
            counter.write_text(str(int(counter.read_text()) + 1))
            os.unlink(folder / "inside")

asyncio.run(main())
"""


def test_six_processes_on_one_name_are_never_inside_together(tmp_path, database):
    (tmp_path / "counter").write_text("0")
    argv = [sys.executable, "-c", _WORKER, database, tmp_path, "8"]
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen(argv, cwd=root) for _ in range(6)]
    assert [process.wait(90) for process in processes] == [0] * 6
    assert (tmp_path / "counter").read_text() == "48"
