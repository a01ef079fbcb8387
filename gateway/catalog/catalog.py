"""The catalog: what all workers and replicas know together.

A device is a row, and the row is the job of making it. Its state changes by the arrows of ``recipes/states.py`` only,
each as one conditional statement, so that two who want to change it at once cannot both succeed. Nothing here says
whether bytes can be had at the moment. Every method raises ``StorageError`` when the database does not answer;
callers keep serving what is open.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateRow

from blockgate.names import is_device_name
from gateway.catalog import changes, indexes, rows
from gateway.catalog.database import Database, replace
from gateway.catalog.generation import Generation
from gateway.catalog.leases import HeldLease, Leases
from gateway.catalog.tables import devices, image_configs, metadata_builds, refuted_tables
from gateway.errors import ContentNotFound, DeviceExists, DeviceNotFound
from gateway.layers.index import IndexRow
from gateway.layers.key import LayerKey
from gateway.recipes.recipe import Recipe, proven_tag
from gateway.recipes.records import DeviceRecord, Failure, Page, Progress
from gateway.recipes.spec import DeviceSpec
from gateway.recipes.states import Event, State, Verification, sources, target

T = TypeVar("T")

_PROVING = sa.and_(devices.c.state == State.READY, devices.c.verification == Verification.VERIFYING)
_UNFINISHED = sa.or_(devices.c.state == State.INDEXING, _PROVING)


class Catalog:
    """Devices, layer indexes, leases. ``owner`` names this process in leases."""

    def __init__(self, url: str, generation: Generation, owner: str) -> None:
        self.generation = generation
        self._database = Database(url)
        self.leases = Leases(self._database, owner)
        self._recent: frozenset[int] = frozenset()

    # Devices.

    async def create(self, name: str, spec: DeviceSpec) -> tuple[DeviceRecord, bool]:
        """A device to be made, and whether there is work to begin: it is new, or its failed registration is tried again.

        A failed one makes room for another specification. Raises ``DeviceExists`` when the name belongs to another one.
        """

        def work(connection: sa.Connection) -> tuple[DeviceRecord, bool]:
            present = _find(connection, name, lock=True)
            if present is not None:
                if present.state is State.FAILED and present.newer is None:
                    if present.spec == spec:
                        _advance(connection, present, Event.ASKED_AGAIN, failure=None)
                        return _get(connection, name), True
                    connection.execute(sa.delete(devices).where(devices.c.uid == present.uid))
                    changes.add(connection, present.uid)
                elif present.spec != spec:
                    raise DeviceExists(
                        f"device {name!r} exists with another specification; delete it first or choose another name"
                    )
                else:
                    return present, False
            uid = uuid.uuid4().hex
            row = {
                "name": name,
                "uid": uid,
                "spec": spec.model_dump(mode="json"),
                "state": State.INDEXING,
                "verification": Verification.UNVERIFIED,
                "created_at": datetime.now(UTC),
                "layout": spec.layout,
                "image": spec.source.image,
                "platform": spec.source.platform,
            }
            connection.execute(sa.insert(devices).values(row))
            changes.add(connection, uid)
            return _get(connection, name), True

        while True:
            try:
                return await self._write(work)
            except DuplicateRow:
                continue  # another process was first: look at what it made

    async def get(self, name: str) -> DeviceRecord:
        """Raises ``DeviceNotFound``."""
        # A name that no device can have need not be looked for; PostgreSQL would not even take a NUL.
        if not is_device_name(name):
            raise DeviceNotFound(f"there is no device {name[:140]!r}")
        return await self._database.read(lambda connection: _get(connection, name))

    async def by_content(self, etag: str) -> DeviceRecord:
        """A ready device whose bytes have this entity tag, proven or not. Raises ``ContentNotFound``."""
        proven = proven_tag(etag)

        def work(connection: sa.Connection) -> DeviceRecord | None:
            query = sa.select(devices).where(devices.c.etag == proven).order_by(devices.c.created_at)
            found = [rows.record(row) for row in connection.execute(query).mappings()]
            return next((each for each in found if answers_to(each, etag)), None)

        found = await self._database.read(work) if proven.isascii() and proven.isprintable() else None
        if found is None:
            raise ContentNotFound(f"no device has the content {etag[:80]}")
        return found

    async def page(
        self, *, limit: int, cursor: str | None = None, state: State | None = None, name: str | None = None
    ) -> Page:
        """Up to ``limit`` devices by name, those behind ``cursor``; ``name`` is a part of their names."""
        if name is not None and not name.isprintable():
            return Page((), None)  # no device's name has that in it, and PostgreSQL would not take a NUL
        query = sa.select(*rows.SUMMARY).order_by(devices.c.name).limit(limit + 1)
        if cursor is not None:
            query = query.where(devices.c.name > cursor)
        if state is not None:
            query = query.where(devices.c.state == state)
        if name is not None:
            query = query.where(devices.c.name.contains(name, autoescape=True))

        def work(connection: sa.Connection) -> Page:
            found = [rows.summary(row) for row in connection.execute(query).mappings()]
            more = len(found) > limit
            shown = tuple(found[:limit])
            return Page(shown, shown[-1].name if more else None)

        return await self._database.read(work)

    async def counts(self) -> dict[State, int]:
        """How many devices are in each state."""
        query = sa.select(devices.c.state, sa.func.count()).group_by(devices.c.state)

        def work(connection: sa.Connection) -> dict[State, int]:
            found = {state: count for state, count in connection.execute(query).all()}  # noqa: C416 - rows are no pairs
            return {state: found.get(state, 0) for state in State}

        return await self._database.read(work)

    async def unfinished(self) -> list[DeviceRecord]:
        """Devices for which there is work."""
        query = sa.select(devices).where(_UNFINISHED)

        def work(connection: sa.Connection) -> list[DeviceRecord]:
            found = [rows.record(row) for row in connection.execute(query).mappings()]
            return [each for each in found if each.unfinished]

        return await self._database.read(work)

    async def present(self, uids: Collection[str]) -> set[str]:
        """Those of these devices that have not been deleted."""
        query = sa.select(devices.c.uid).where(devices.c.uid.in_(uids))
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))

    async def progress(self, record: DeviceRecord, progress: Progress) -> None:
        """Show how far its registration is. That changes nothing that a reader of bytes needs to know.

        Where the work has ended, for example by another worker, nothing is shown any more.
        """

        def work(connection: sa.Connection) -> None:
            values = {"progress": rows.progress_json(progress)}
            where = sa.and_(devices.c.uid == record.uid, _UNFINISHED)
            connection.execute(sa.update(devices).where(where).values(values))

        await self._database.write(work)

    async def publish(
        self,
        record: DeviceRecord,
        recipe: Recipe,
        keys: Sequence[LayerKey],
        *,
        verification: Verification,
        config: str,
        contents: Mapping[str, int] | None,
    ) -> list[LayerKey]:
        """Make a device ready: its recipe, its references and its state in one transaction.

        Returns the indexes that went missing meanwhile, and then changes nothing. A device that was deleted stays so.
        """

        def work(connection: sa.Connection) -> list[LayerKey]:
            values = {
                "verification": verification,
                "recipe": recipe.to_json(),
                "size": recipe.size,
                "etag": recipe.etag,
                "image": recipe.reference,
                "manifest": recipe.manifest,
                "contents": sa.null() if contents is None else dict(contents),
                "progress": sa.null(),
            }
            if not _advance(connection, record, Event.PUBLISHED, failure=None, **values):
                return []
            missing = indexes.refer(connection, record.uid, keys, self._database.now)
            if missing:
                raise _Missing(missing)
            # Holds the row until the end, whoever made it: who deletes another device of the image waits for this one.
            replace(connection, image_configs, {"manifest": recipe.manifest}, config=config)
            return []

        try:
            return await self._write(work)
        except _Missing as error:
            return error.keys

    async def prove(self, record: DeviceRecord, keys: Sequence[LayerKey]) -> list[LayerKey]:
        """The pass behind a device that is served proved its table: it is read by these indexes from now on.

        Returns the indexes that went missing meanwhile, and then changes nothing.
        """

        def work(connection: sa.Connection) -> list[LayerKey]:
            values = {"verification": Verification.VERIFIED, "progress": sa.null()}
            where = sa.and_(devices.c.uid == record.uid, _PROVING)
            if connection.execute(sa.update(devices).where(where).values(values)).rowcount == 0:
                return []
            missing = indexes.refer(connection, record.uid, keys, self._database.now)
            if missing:
                raise _Missing(missing)
            changes.add(connection, record.uid)
            return []

        try:
            return await self._write(work)
        except _Missing as error:
            return error.keys

    async def end(self, record: DeviceRecord, event: Event, failure: Failure) -> bool:
        """A registration ended badly; ``False`` when the device is gone or in another state."""

        def work(connection: sa.Connection) -> bool:
            return _advance(
                connection,
                record,
                event,
                failure=failure,
                progress=sa.null(),
                verification=Verification.UNVERIFIED,
            )

        return await self._write(work)

    async def delete(self, name: str) -> DeviceRecord:
        """Remove a device and return what it was. Raises ``DeviceNotFound``."""

        def work(connection: sa.Connection) -> DeviceRecord:
            record = _get(connection, name, lock=True)
            connection.execute(sa.delete(devices).where(devices.c.uid == record.uid))
            if record.recipe is not None:
                manifest = record.recipe.manifest
                # Whoever publishes a device of the same image has ended before it is looked who uses the configuration.
                connection.execute(
                    sa.select(image_configs.c.manifest)
                    .where(image_configs.c.manifest == manifest)
                    .with_for_update()
                )
                used = sa.exists().where(devices.c.manifest == manifest)
                connection.execute(
                    sa.delete(image_configs).where(image_configs.c.manifest == manifest, ~used)
                )
            changes.add(connection, record.uid)
            return record

        if not is_device_name(name):
            raise DeviceNotFound(f"there is no device {name[:140]!r}")
        return await self._write(work)

    async def config(self, record: DeviceRecord) -> str | None:
        """The configuration of a device's image, as JSON text."""
        if record.recipe is None:
            return None
        query = sa.select(image_configs.c.config).where(image_configs.c.manifest == record.recipe.manifest)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one_or_none())

    # Layer indexes.

    def lease(self, name: str) -> AbstractAsyncContextManager[HeldLease]:
        """Wait for a lease and hold it."""
        return self.leases.hold(name)

    async def index_row(self, key: LayerKey) -> IndexRow | None:
        """The attempt that counts."""
        return await self._database.read(lambda connection: indexes.find(connection, key))

    async def commit_index(self, key: LayerKey, row: IndexRow, lease: HeldLease) -> IndexRow | None:
        """Make an attempt the one that counts. Raises ``LeaseLost``."""
        return await self._database.write(
            lambda connection: indexes.commit(
                connection, key, row, lease, self._database.now, shared=self._database.shared
            )
        )

    async def drop_index(self, key: LayerKey, attempt: str) -> None:
        """The attempt counts no more."""
        await self._database.write(lambda connection: indexes.drop(connection, key, attempt))

    async def remove_index(self, key: LayerKey) -> str | None:
        """Forget an index that no device refers to; returns the attempt that counted."""
        return await self._database.write(lambda connection: indexes.remove_unused(connection, key))

    # What was found out once.

    async def build(self, source: str) -> tuple[str, dict[str, Any]] | None:
        """Digest and facts of the metadata that was built of ``source``."""
        query = sa.select(metadata_builds).where(metadata_builds.c.source == source)

        def work(connection: sa.Connection) -> tuple[str, dict[str, Any]] | None:
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else (row["digest"], row["facts"])

        return await self._database.read(work)

    async def keep_build(self, source: str, digest: str, facts: dict[str, Any]) -> None:
        """Remember what was built."""

        def work(connection: sa.Connection) -> None:
            replace(connection, metadata_builds, {"source": source}, digest=digest, facts=facts)

        await self._database.write(work)

    async def refuted(self, zinfo: str, blob: str) -> str | None:
        """What a pass found wrong with a table, if one did."""
        query = sa.select(refuted_tables.c.reason).where(
            refuted_tables.c.zinfo == zinfo, refuted_tables.c.blob == blob
        )
        return await self._database.read(lambda connection: connection.execute(query).scalar_one_or_none())

    async def refute(self, zinfo: str, blob: str, reason: str) -> None:
        """Remember it."""

        def work(connection: sa.Connection) -> None:
            replace(connection, refuted_tables, {"zinfo": zinfo, "blob": blob}, reason=reason)

        await self._database.write(work)

    # Changes.

    async def changed(self, cursor: int) -> tuple[int, set[str] | None]:
        """What changed since ``cursor`` (0 at first): the next cursor, and uids; ``None`` for everything."""
        return await self._database.read(
            lambda connection: changes.since(connection, cursor, shared=self._database.shared)
        )

    async def look(self, cursor: int) -> None:
        """Where other hosts use the database, tell this one's workers when something came after ``cursor``."""
        if not self._database.shared:
            return
        last, recent = await self._database.read(changes.recent)
        # A change with a lower number may be committed after one with a higher number was seen.
        late, self._recent = recent - self._recent, recent
        if last > cursor or late:
            self.generation.advance()

    async def check(self) -> None:
        """Raise unless the database answers."""
        await self._database.read(changes.newest)

    def close(self) -> None:
        """Close all connections, once the calls under way have ended; blocking."""
        self._database.close()

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        """A change of devices: the feed has it when it is committed, and every worker is told."""
        return await self._database.write(work, then=self.generation.advance)


class _Missing(Exception):
    """Ends a transaction without effect."""

    def __init__(self, keys: list[LayerKey]) -> None:
        super().__init__()
        self.keys = keys


def answers_to(record: DeviceRecord, etag: str) -> bool:
    """Whether a device has bytes of this entity tag: the one it is served by, or the unproven one that became it."""
    if record.state is not State.READY or record.recipe is None:
        return False
    if etag == record.etag:
        return True
    verified = record.verification is Verification.VERIFIED
    return verified and etag == record.unproven_etag


def _find(connection: sa.Connection, name: str, *, lock: bool = False) -> DeviceRecord | None:
    query = sa.select(devices).where(devices.c.name == name)
    if lock:
        query = query.with_for_update()  # SQLite has one writer at a time anyway
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else rows.record(row)


def _get(connection: sa.Connection, name: str, *, lock: bool = False) -> DeviceRecord:
    found = _find(connection, name, lock=lock)
    if found is None:
        raise DeviceNotFound(f"there is no device {name!r}")
    return found


def _advance(
    connection: sa.Connection, record: DeviceRecord, event: Event, *, failure: Failure | None, **columns: Any
) -> bool:
    """Follow an arrow of the table of states; ``False`` when the device is gone or the arrow does not begin where it is."""
    values = {
        **columns,
        "state": target(event),
        "failure_code": failure.code if failure else None,
        "failure_detail": failure.detail if failure else None,
    }
    where = sa.and_(devices.c.uid == record.uid, devices.c.state.in_(sorted(sources(event))))
    done = connection.execute(sa.update(devices).where(where).values(values)).rowcount > 0
    if done:
        changes.add(connection, record.uid)
    return done
