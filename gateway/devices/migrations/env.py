"""How Alembic reaches the database: the URL is handed in by ``catalog.migrate``, there is no ini file."""

from __future__ import annotations

from alembic import context

from gateway.devices.catalog import open_engine
from gateway.devices.tables import metadata

engine = open_engine(context.config.attributes["url"])
with engine.connect() as connection:
    # Batch mode: SQLite cannot alter most of a table in place.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
engine.dispose()
