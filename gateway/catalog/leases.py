"""Leases: who among all processes and replicas does a thing. One row each, by the database's clock.

A holder renews its lease three times in its life; one that dies is succeeded when it has run out. The token grows
with each holder, so that what a holder commits after it was given up for dead can be refused (``owns``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from gateway.catalog.database import Database
from gateway.errors import LeaseLost, StorageError

LEASE_SECONDS = 15.0
_FIRST_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease that was given out."""

    name: str
    owner: str
    token: int


class Leases:
    """The table. ``owner`` names this process; what it held can be released by that name when it is dead."""

    def __init__(self, database: Database, owner: str, seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._owner = owner
        self._seconds = seconds
        self._pause = seconds / 3
        now = database.now
        self._claim = sa.text(
            f"INSERT INTO leases (name, owner, token, until) VALUES (:n, :o, 1, {now} + :s) "  # noqa: S608 - a constant
            "ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, token = leases.token + 1, until = excluded.until "
            f"WHERE leases.until < {now} RETURNING token"
        )
        self._renew = sa.text(
            f"UPDATE leases SET until = {now} + :s WHERE name = :n AND owner = :o AND token = :t"  # noqa: S608
        )
        self._release = sa.text("UPDATE leases SET until = 0 WHERE name = :n AND owner = :o AND token = :t")

    async def claim(self, name: str) -> HeldLease | None:
        """The lease, or ``None`` when somebody holds it. Raises ``StorageError``."""

        def work(connection: sa.Connection) -> int | None:
            values = {"n": name, "o": self._owner, "s": self._seconds}
            return connection.execute(self._claim, values).scalar_one_or_none()

        token = await self._database.write(work)
        return None if token is None else HeldLease(name, self._owner, token)

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[HeldLease]:
        """Wait for the lease, and hold it while the block runs. Raises ``LeaseLost`` out of the block when it is lost."""
        pause = _FIRST_POLL_SECONDS
        while (lease := await self.claim(name)) is None:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_POLL_SECONDS)
        async with self.keeping(lease):
            yield lease

    @asynccontextmanager
    async def keeping(self, lease: HeldLease) -> AsyncIterator[None]:
        """Renew a lease while the block runs, and release it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        lost = False

        async def renew() -> None:
            nonlocal lost
            good_until = time.monotonic() + self._seconds
            while True:
                await asyncio.sleep(self._pause)
                asked = time.monotonic()
                try:
                    # A database that hangs says nothing either.
                    async with asyncio.timeout(good_until - asked):
                        kept = await self._set(self._renew, lease) > 0
                except (StorageError, TimeoutError):
                    kept = time.monotonic() < good_until  # nobody else can have taken it yet
                else:
                    good_until = asked + self._seconds
                if not kept:
                    lost = True
                    task.cancel()
                    return

        renewer = asyncio.create_task(renew())
        try:
            yield
        except asyncio.CancelledError:
            # Who is cancelled by somebody else at the same moment is to end, and not to try again.
            if not lost or task.uncancel() > 0:
                raise
            raise LeaseLost(f"the lease {lease.name!r} ran out before it was renewed") from None
        finally:
            renewer.cancel()
            # What cannot be released runs out.
            with contextlib.suppress(StorageError):
                await asyncio.shield(self._set(self._release, lease))

    async def _set(self, statement: sa.TextClause, lease: HeldLease) -> int:
        def work(connection: sa.Connection) -> int:
            values = {"n": lease.name, "o": lease.owner, "t": lease.token, "s": self._seconds}
            return connection.execute(statement, values).rowcount

        return await self._database.write(work)


def owns(connection: sa.Connection, lease: HeldLease) -> bool:
    """Whether the lease still is its holder's; inside of the transaction that commits the holder's work.

    The clock plays no part: one that ran out but was taken by nobody still excludes everybody else's work.
    """
    statement = sa.text("UPDATE leases SET token = token WHERE name = :n AND owner = :o AND token = :t")
    values = {"n": lease.name, "o": lease.owner, "t": lease.token}
    return connection.execute(statement, values).rowcount > 0
