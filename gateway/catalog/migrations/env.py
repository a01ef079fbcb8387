"""How Alembic reaches the database: the URL is handed in by ``database.migrate``, there is no ini file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from gateway.catalog.database import open_engine
from gateway.catalog.tables import metadata

# Any number that nothing else in the database locks by.
_MIGRATION_LOCK = 7_110_021

engine = open_engine(context.config.attributes["url"])
try:
    with engine.connect() as connection:
        # Batch mode: SQLite cannot alter most of a table in place.
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
        with context.begin_transaction():
            if engine.dialect.name == "postgresql":
                # Replicas that start together migrate one after the other.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            context.run_migrations()
        connection.commit()
finally:
    engine.dispose()
