"""The catalog: every device that was registered, in SQLite or PostgreSQL, shared by all workers.

Calls are synchronous inside and run on a thread. A counter in shared memory tells workers that something changed, so that
reading a device's bytes needs no query.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import IntegrityError as DuplicateRow
from sqlalchemy.exc import SQLAlchemyError

from gateway.devices import segments
from gateway.devices.records import DeviceRecord, Failure, ImageFacts, Progress
from gateway.devices.spec import DeviceSpec
from gateway.devices.tables import devices
from gateway.errors import DeviceExists, DeviceNotFound, StorageError

T = TypeVar("T")

_KEEP: Any = object()


_GENERATION_BYTES = 8


class Generation:
    """A number that all processes of a data folder share; it grows with each change of the catalog."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _GENERATION_BYTES:
                os.ftruncate(fd, _GENERATION_BYTES)
            self._map = mmap.mmap(fd, _GENERATION_BYTES)
            self._values = memoryview(self._map).cast("Q")
        finally:
            os.close(fd)

    def value(self) -> int:
        """The current number."""
        return self._values[0]

    def advance(self) -> None:
        """Tell everybody. Two simultaneous calls may count as one: any change of the number will do."""
        self._values[0] = (self.value() + 1) & 0xFFFFFFFFFFFFFFFF

    def close(self) -> None:
        """Unmap."""
        self._values.release()
        self._map.close()


def migrate(url: str) -> None:
    """Bring the database to the newest schema. Call once, before workers start."""
    config = Config()
    config.set_main_option("script_location", "gateway:devices/migrations")
    config.attributes["url"] = url
    try:
        command.upgrade(config, "head")
    except SQLAlchemyError as error:
        raise StorageError(f"the catalog cannot be opened or migrated: {_reason(error)}") from error


class Catalog:
    """Devices by name. All methods raise ``StorageError`` when the database does not answer."""

    def __init__(self, url: str, generation: Generation, executor: ThreadPoolExecutor) -> None:
        self.generation = generation
        self._executor = executor
        self._engine = open_engine(url)
        self._calls: set[Future[Any]] = set()

    async def create(self, name: str, spec: DeviceSpec) -> tuple[DeviceRecord, bool]:
        """Insert a device in state ``indexing``; ``False`` with the record that is there when its spec is the same.

        Raises ``DeviceExists`` when the name belongs to another spec.
        """
        row = {
            "name": name,
            "uid": uuid.uuid4().hex,
            "spec": spec.model_dump(mode="json"),
            "state": "indexing",
            "verification": "unverified",
            "created_at": datetime.now(UTC),
            "segments": [],
        }

        def work(connection: sa.Connection) -> DeviceRecord:
            connection.execute(sa.insert(devices).values(row))
            return _record(connection.execute(_by_name(name)).mappings().one())

        while True:
            try:
                return await self._write(work), True
            except DuplicateRow:
                try:
                    present = await self.get(name)
                except DeviceNotFound:
                    continue  # what was in the way was deleted meanwhile
            if present.spec != spec:
                raise DeviceExists(
                    f"device {name!r} exists with another specification; delete it first or choose another name"
                )
            return present, False

    async def get(self, name: str) -> DeviceRecord:
        """Raises ``DeviceNotFound``."""

        def work(connection: sa.Connection) -> DeviceRecord | None:
            row = connection.execute(_by_name(name)).mappings().one_or_none()
            return None if row is None else _record(row)

        # A name that no device can have need not be looked for; PostgreSQL would not even take a NUL.
        record = None if "\x00" in name else await self._read(work)
        if record is None:
            raise DeviceNotFound(f"there is no device {name!r}")
        return record

    async def all(self) -> list[DeviceRecord]:
        """All devices by name."""

        def work(connection: sa.Connection) -> list[DeviceRecord]:
            rows = connection.execute(sa.select(devices).order_by(devices.c.name)).mappings()
            return [_record(row) for row in rows]

        return await self._read(work)

    async def update(
        self,
        record: DeviceRecord,
        *,
        only_from: frozenset[str] | None = None,
        failure: Failure | None = _KEEP,
        progress: Progress | None = _KEEP,
        image: ImageFacts | None = _KEEP,
        segments_: list[segments.Segment] = _KEEP,
        **columns: Any,
    ) -> bool:
        """Change columns of this very device; ``False`` when it was deleted meanwhile (or is in another state)."""
        values = dict(columns)
        if failure is not _KEEP:
            values["failure_code"] = failure.code if failure else None
            values["failure_detail"] = failure.detail if failure else None
        if progress is not _KEEP:
            values["progress"] = asdict(progress) if progress else sa.null()
        if image is not _KEEP:
            values["image"] = asdict(image) if image else sa.null()
        if segments_ is not _KEEP:
            values["segments"] = segments.to_json(segments_)
        where = devices.c.uid == record.uid
        if only_from is not None:
            where = sa.and_(where, devices.c.state.in_(only_from))

        def work(connection: sa.Connection) -> bool:
            return connection.execute(sa.update(devices).where(where).values(values)).rowcount > 0

        # Progress alone changes nothing that a reader of bytes needs to know.
        quiet = set(values) == {"progress"}
        return await self._write(work, quiet=quiet)

    async def delete(self, name: str) -> DeviceRecord:
        """Remove a device and return what it was. Raises ``DeviceNotFound``."""
        record = await self.get(name)

        def work(connection: sa.Connection) -> int:
            return connection.execute(sa.delete(devices).where(devices.c.uid == record.uid)).rowcount

        if not await self._write(work):
            raise DeviceNotFound(f"there is no device {name!r}")
        return record

    async def check(self) -> None:
        """Raise unless the database answers."""
        await self._read(
            lambda connection: connection.execute(sa.select(sa.func.count()).select_from(devices)).scalar()
        )

    def close(self) -> None:
        """Close all connections, once the calls under way have given theirs back: a caller may be gone before its call."""
        wait(self._calls)
        self._engine.dispose()

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._run(work)

    async def _write(self, work: Callable[[sa.Connection], T], *, quiet: bool = False) -> T:
        return await self._run(work, advance=not quiet)

    async def _run(self, work: Callable[[sa.Connection], T], *, advance: bool = False) -> T:
        def call() -> T:
            with self._engine.begin() as connection:
                result = work(connection)
            # Here, not where the caller waits: what is committed must be told even if the caller was cancelled.
            if advance:
                self.generation.advance()
            return result

        future = self._executor.submit(call)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        try:
            return await asyncio.wrap_future(future)
        except DuplicateRow:
            raise
        except SQLAlchemyError as error:
            raise StorageError(f"the catalog does not answer: {_reason(error)}") from error


def open_engine(url: str) -> sa.Engine:
    """An engine for ``sqlite:///PATH`` or ``postgresql+psycopg://…``."""
    engine = sa.create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA busy_timeout=10000")

    return engine


def _by_name(name: str) -> sa.Select[Any]:
    return sa.select(devices).where(devices.c.name == name)


def _record(row: Any) -> DeviceRecord:
    created = row["created_at"]
    failed = row["failure_code"] is not None
    return DeviceRecord(
        name=row["name"],
        uid=row["uid"],
        spec=DeviceSpec.model_validate(row["spec"]),
        state=row["state"],
        verification=row["verification"],
        # SQLite drops the zone; what was stored is UTC.
        created_at=created if created.tzinfo else created.replace(tzinfo=UTC),
        size=row["size"],
        etag=row["etag"],
        segments=segments.from_json(row["segments"]),
        image=ImageFacts(**row["image"]) if row["image"] else None,
        progress=Progress(**row["progress"]) if row["progress"] else None,
        failure=Failure(row["failure_code"], row["failure_detail"] or "") if failed else None,
        contents=row["contents"],
    )


def _reason(error: SQLAlchemyError) -> str:
    """The driver's words, without SQL, parameters or the URL's password."""
    origin = getattr(error, "orig", None)
    return str(origin or type(error).__name__).splitlines()[0][:200]
