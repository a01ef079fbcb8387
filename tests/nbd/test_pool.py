from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nbd_client.errors import SourceTimeout, SourceUnreachable
from nbd_client.source.pool import ConnectionPool
from nbd_client.source.url import parse
from tests.support.rangeserver import range_server


def soon(seconds: float = 20) -> float:
    return asyncio.get_running_loop().time() + seconds


def pool_of(url: str, limit: int = 2) -> ConnectionPool:
    return ConnectionPool(parse(url).endpoint, limit=limit, connect_timeout_seconds=5)


async def test_the_last_used_connection_is_used_first():
    async with range_server(b"x") as server:
        pool = pool_of(server.url)
        first, second = await pool.acquire(soon()), await pool.acquire(soon())
        pool.release(first)
        pool.release(second)
        assert pool.take() is second
        assert await pool.acquire(soon()) is first
        pool.close()


async def test_who_comes_when_all_are_busy_waits_in_order():
    async with range_server(b"x") as server:
        pool = pool_of(server.url, limit=1)
        held = await pool.acquire(soon())
        assert pool.take() is None
        order = []

        async def use(name: str) -> None:
            connection = await pool.acquire(soon())
            order.append(name)
            pool.release(connection)

        users = [asyncio.create_task(use(name)) for name in "abc"]
        await asyncio.sleep(0)
        pool.release(held)
        await asyncio.gather(*users)
        assert order == ["a", "b", "c"]
        assert server.connections == 1
        pool.close()


async def test_a_cancelled_waiter_loses_no_slot():
    async with range_server(b"x") as server:
        pool = pool_of(server.url, limit=1)
        held = await pool.acquire(soon())
        waiter = asyncio.create_task(pool.acquire(soon()))
        await asyncio.sleep(0)
        pool.release(held)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        if not waiter.cancelled():
            pool.release(waiter.result())
        pool.release(await pool.acquire(soon()))
        pool.close()


async def test_waiting_ends_at_the_deadline():
    async with range_server(b"x") as server:
        pool = pool_of(server.url, limit=1)
        await pool.acquire(soon())
        with pytest.raises(SourceTimeout, match="busy"):
            await pool.acquire(soon(0.01))
        pool.close()


async def test_a_fresh_connection_was_never_used():
    async with range_server(b"x") as server:
        pool = pool_of(server.url)
        used = await pool.acquire(soon())
        pool.release(used)
        assert await pool.acquire(soon(), fresh=True) is not used
        pool.close()


async def test_a_closed_pool_gives_nothing_and_a_missing_socket_is_named(tmp_path: Path):
    pool = pool_of(f"http+unix://{str(tmp_path).replace('/', '%2F')}%2Fmissing/")
    with pytest.raises(SourceUnreachable, match="missing"):
        await pool.acquire(soon())
    pool.close()
    with pytest.raises(SourceUnreachable, match="closed"):
        await pool.acquire(soon())
