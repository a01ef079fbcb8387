"""The feed of changed devices: every transaction that changes one adds its uid.

Whoever follows keeps a cursor and asks for what came after it. On PostgreSQL numbers are given out before they are
committed, so a lower one can appear later: a little of what was seen is read again, which costs its readers one
needless look.
"""

from __future__ import annotations

import sqlalchemy as sa

from gateway.catalog.tables import changes

_OVERLAP = 64
_KEPT = 20_000
_PRUNE_EVERY = 1_000


def add(connection: sa.Connection, uid: str) -> None:
    """A device changed."""
    (seq,) = connection.execute(sa.insert(changes).values(uid=uid)).inserted_primary_key  # type: ignore[misc]
    if seq % _PRUNE_EVERY == 0:
        connection.execute(sa.delete(changes).where(changes.c.seq <= seq - _KEPT))


def newest(connection: sa.Connection) -> int:
    """The cursor of now."""
    return connection.execute(sa.select(sa.func.max(changes.c.seq))).scalar() or 0


def recent(connection: sa.Connection) -> tuple[int, frozenset[int]]:
    """The cursor of now, and the numbers that are there of those a little before it."""
    last = newest(connection)
    found = connection.execute(sa.select(changes.c.seq).where(changes.c.seq > last - _OVERLAP))
    return last, frozenset(found.scalars())


def since(connection: sa.Connection, cursor: int, *, shared: bool) -> tuple[int, set[str] | None]:
    """The new cursor and the uids that changed; ``None`` for the uids when the feed no longer reaches back so far."""
    last = newest(connection)
    if last - cursor > _KEPT:
        return last, None
    begin = cursor - _OVERLAP if shared else cursor
    rows = connection.execute(sa.select(changes.c.uid).where(changes.c.seq > begin).distinct())
    return last, {row.uid for row in rows}
