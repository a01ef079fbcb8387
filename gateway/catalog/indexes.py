"""Layer indexes in the catalog, and the devices that refer to them; SQL inside of one transaction each."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from gateway.catalog.leases import HeldLease, owns
from gateway.catalog.tables import device_layers, layer_indexes
from gateway.errors import LeaseLost
from gateway.layers.index import IndexRow
from gateway.layers.key import LayerKey


def find(connection: sa.Connection, key: LayerKey) -> IndexRow | None:
    """The attempt that counts."""
    row = connection.execute(sa.select(layer_indexes).where(_is(key))).mappings().one_or_none()
    if row is None or not row["attempt"]:
        return None
    return IndexRow(attempt=row["attempt"], sha256=row["sha256"], bytes=row["bytes"])


def commit(
    connection: sa.Connection, key: LayerKey, row: IndexRow, lease: HeldLease, now: str, *, shared: bool
) -> IndexRow | None:
    """Make an attempt the one that counts; returns the one before. Raises ``LeaseLost``.

    A pass gives the same index wherever it runs. Where other hosts use the database too (``shared``) an equal attempt
    changes nothing: each host finds its own copy by its digest.
    """
    if not owns(connection, lease):
        raise LeaseLost(f"the index of {key.blob} was given to somebody else to make")
    before = find(connection, key)
    if shared and before is not None and before.sha256 == row.sha256:
        return None
    values = {**row.model_dump(), "used_at": sa.text(now)}
    if connection.execute(sa.update(layer_indexes).where(_is(key)).values(values)).rowcount == 0:
        connection.execute(sa.insert(layer_indexes).values(blob=key.blob, cut=key.cut, **values))
    return before


def drop(connection: sa.Connection, key: LayerKey, attempt: str) -> None:
    """The attempt counts no more. The row stays where devices refer to it: they want another one made."""
    connection.execute(
        sa.update(layer_indexes).where(_is(key), layer_indexes.c.attempt == attempt).values(attempt="")
    )


def remove_unused(connection: sa.Connection, key: LayerKey) -> str | None:
    """Remove the row of an index that no device refers to; returns the attempt that counted."""
    # A device that is taking the index holds its row: it has ended before it is looked who refers to it.
    connection.execute(sa.select(layer_indexes.c.attempt).where(_is(key)).with_for_update())
    used = sa.exists().where(device_layers.c.blob == key.blob, device_layers.c.cut == key.cut)
    statement = sa.delete(layer_indexes).where(_is(key), ~used).returning(layer_indexes.c.attempt)
    return connection.execute(statement).scalar_one_or_none()


def refer(connection: sa.Connection, uid: str, keys: Sequence[LayerKey], now: str) -> list[LayerKey]:
    """Have a device refer to these indexes and to no others; returns those that are missing, and then changes nothing."""
    missing = []
    for key in keys:
        touched = (
            sa.update(layer_indexes)
            .where(_is(key), layer_indexes.c.attempt != "")
            .values(used_at=sa.text(now))
            .returning(layer_indexes.c.blob)
        )
        if connection.execute(touched).one_or_none() is None:
            missing.append(key)
    if missing:
        return missing
    connection.execute(sa.delete(device_layers).where(device_layers.c.uid == uid))
    if keys:
        connection.execute(
            sa.insert(device_layers), [{"uid": uid, "blob": key.blob, "cut": key.cut} for key in keys]
        )
    return []


def counting(connection: sa.Connection) -> dict[LayerKey, IndexRow]:
    """Every attempt that counts."""
    rows = connection.execute(sa.select(layer_indexes).where(layer_indexes.c.attempt != "")).mappings()
    return {
        LayerKey(row["blob"], row["cut"]): IndexRow(
            attempt=row["attempt"], sha256=row["sha256"], bytes=row["bytes"]
        )
        for row in rows
    }


def _is(key: LayerKey) -> sa.ColumnElement[bool]:
    return sa.and_(layer_indexes.c.blob == key.blob, layer_indexes.c.cut == key.cut)
