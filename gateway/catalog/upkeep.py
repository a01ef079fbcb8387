"""What the supervisor does with the catalog, outside of any event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gateway.catalog import indexes
from gateway.catalog.database import open_engine, reason
from gateway.errors import StorageError
from gateway.layers.index import IndexRow
from gateway.layers.key import LayerKey

T = TypeVar("T")


def release_leases(url: str, owner_prefix: str) -> None:
    """Release what dead processes held: nobody has to wait until it runs out. Raises ``StorageError``."""
    statement = sa.text("UPDATE leases SET until = 0 WHERE substr(owner, 1, :l) = :o")

    def work(connection: sa.Connection) -> None:
        connection.execute(statement, {"l": len(owner_prefix), "o": owner_prefix})

    _run(url, work)


def counting_indexes(url: str) -> dict[LayerKey, IndexRow]:
    """The attempts that count. Raises ``StorageError``."""
    return _run(url, indexes.counting)


def _run(url: str, work: Callable[[sa.Connection], T]) -> T:
    engine = open_engine(url).execution_options(writing=True)
    try:
        with engine.begin() as connection:
            return work(connection)
    except SQLAlchemyError as error:
        raise StorageError(f"the catalog does not answer: {reason(error)}") from error
    finally:
        engine.dispose()
