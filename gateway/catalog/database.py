"""The engine behind the catalog: transactions on threads of its own, errors translated, waits bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError as DuplicateRow
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import ConfigurationError, StorageError

T = TypeVar("T")

_THREADS = 4
_BUSY_MILLISECONDS = 10_000
_CONNECT_SECONDS = 5
_STATEMENT_MILLISECONDS = 15_000

_CLOCKS = {
    # Debian 12's SQLite has no unixepoch('subsec').
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())",
}


def migrate(url: str) -> None:
    """Bring the database to the newest schema. Call once, before workers start.

    Raises ``ConfigurationError`` for a schema that this version cannot come from, ``StorageError``.
    """
    config = Config()
    config.set_main_option("script_location", "gateway:catalog/migrations")
    config.attributes["url"] = url
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            "the catalog's database was made by version 0.1 or by a later version than this one, neither of which can be "
            f"read ({error}); use an empty database, or the version that made it"
        ) from error
    except SQLAlchemyError as error:
        raise StorageError(f"the catalog cannot be opened or migrated: {reason(error)}") from error


def open_engine(url: str) -> sa.Engine:
    """An engine for ``sqlite:///PATH`` or ``postgresql+psycopg://…``."""
    if sa.make_url(url).get_backend_name() == "postgresql":
        options = f"-c statement_timeout={_STATEMENT_MILLISECONDS}"
        arguments: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "options": options}
        return sa.create_engine(url, pool_pre_ping=True, connect_args=arguments)
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The driver begins transactions late and by itself; a write has to hold the lock from its first statement.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


class Database:
    """Runs functions of a connection, each in one transaction, on a thread."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self._writer = self._engine.execution_options(writing=True)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="catalog")
        self._calls: set[Future[Any]] = set()
        self.now = _CLOCKS[self._engine.dialect.name]
        """SQL for the database's clock in seconds."""
        self.shared = self._engine.dialect.name != "sqlite"
        """Whether other hosts may use it too."""

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """The result of ``work``. Raises ``StorageError`` when the database does not answer."""
        return await self._run(self._engine, work, None)

    async def write(self, work: Callable[[sa.Connection], T], *, then: Callable[[], None] | None = None) -> T:
        """As ``read``, for work that changes something; ``then`` runs once it is committed, whoever still waits.

        Raises ``DuplicateRow`` (SQLAlchemy's) where a row is in the way.
        """
        return await self._run(self._writer, work, then)

    def close(self) -> None:
        """Close all connections, once the calls under way have given theirs back: a caller may be gone before its call."""
        wait(list(self._calls))
        self._executor.shutdown(wait=True)
        self._engine.dispose()

    async def _run(
        self, engine: sa.Engine, work: Callable[[sa.Connection], T], then: Callable[[], None] | None
    ) -> T:
        def call() -> T:
            with engine.begin() as connection:
                result = work(connection)
            if then is not None:
                then()
            return result

        future = self._executor.submit(call)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        try:
            return await asyncio.wrap_future(future)
        except DuplicateRow:
            raise
        except SQLAlchemyError as error:
            raise StorageError(f"the catalog does not answer: {reason(error)}") from error


def replace(connection: sa.Connection, table: sa.Table, key: dict[str, Any], **values: Any) -> None:
    """Write a row whether or not there is one of this key, whoever else writes it at the same moment."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**key, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))


def reason(error: SQLAlchemyError) -> str:
    """The driver's words, without SQL, parameters or the URL's password."""
    origin = getattr(error, "orig", None)
    return str(origin or type(error).__name__).splitlines()[0][:200]
