"""The composition root: one worker's parts, joined."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from gateway.artifacts import Artifacts
from gateway.catalog.catalog import Catalog
from gateway.catalog.database import migrate
from gateway.catalog.generation import Generation
from gateway.catalog.upkeep import counting_indexes, release_leases
from gateway.config import Settings, environment
from gateway.datafolder import DataFolder
from gateway.devices.parts import Parts
from gateway.devices.registrar import Registrar
from gateway.devices.shelf import Shelf
from gateway.errors import StorageError
from gateway.ingest.ingest import Ingest
from gateway.layers.folder import FolderStore
from gateway.layers.open import OpenIndexes
from gateway.recipes.spec import DeviceSpec
from gateway.registry.blob import MinimumRate
from gateway.registry.client import ImageSources, Registries
from gateway.registry.credentials import Credentials, CredentialStore, default_auth_files
from gateway.registry.guard import AllowList
from gateway.registry.layout import LayoutSource
from gateway.registry.observe import CountingObserver
from gateway.registry.reference import parse_reference
from gateway.registry.retry import Retrier, RetryBudget, RetryPolicy
from gateway.registry.stored import StoredCredentials
from gateway.registry.transport import Transport
from gateway.spans.disk import DiskTier, SpanFiles
from gateway.spans.flights import Admission
from gateway.spans.locks import SpanLocks
from gateway.spans.memory import MemoryTier
from gateway.spans.store import SpanStore


@contextmanager
def prepared(settings: Settings) -> Iterator[None]:
    """Around a gateway's life, in its first process: the folder claimed, the catalog migrated, what a crash left removed.

    Raises ``StorageError`` and ``ConfigurationError``.
    """
    _raise_descriptor_limit()
    data = DataFolder(settings.data_dir)
    with data.claimed():
        migrate(settings.catalog_url)
        release_leases(settings.catalog_url, f"{data.id()}.")
        FolderStore(data.layers, data.scratch).sweep(counting_indexes(settings.catalog_url))
        yield


def sweep(settings: Settings, pid: int) -> None:
    """Remove what the dead worker ``pid`` left unfinished, while others go on."""
    data = DataFolder(settings.data_dir)
    data.sweep(pid)
    with contextlib.suppress(StorageError):  # they run out by themselves
        release_leases(settings.catalog_url, f"{data.id()}.{pid}.")


def _raise_descriptor_limit() -> None:
    """Connections take one descriptor each; the soft limit is often far below what the hard one allows (setrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass
class Services:
    """Everything that one worker needs, started and stopped as one."""

    settings: Settings
    data: DataFolder
    catalog: Catalog
    artifacts: Artifacts
    store: SpanStore
    disk: SpanFiles
    shelf: Shelf
    registrar: Registrar
    sources: ImageSources
    credentials: StoredCredentials
    upstream: CountingObserver
    _executors: tuple[ThreadPoolExecutor, ...]
    _locks: SpanLocks | None

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Build all parts on the running loop and go on with unfinished registrations."""
        data = DataFolder(settings.data_dir)
        executor = ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) * 2 + 2, thread_name_prefix="work")
        decoders = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="decode")
        catalog = Catalog(settings.catalog_url, Generation(data.generation), f"{data.id()}.{os.getpid()}.")
        artifacts = Artifacts(data.artifacts, data.scratch, max_bytes=settings.max_artifact)
        locks = None if settings.workers == 1 else SpanLocks(data.span_locks)
        disk = SpanFiles(data.cache, settings.disk_cache, sharers=settings.workers)
        store = SpanStore(
            MemoryTier(settings.memory_cache // settings.workers),
            (DiskTier(disk, locks, executor),),
            Admission(settings.max_fetching),
            decoders,
            concurrent_fetches=settings.concurrent_fetches,
        )
        upstream = CountingObserver()
        credentials = StoredCredentials(data.credentials)
        sources = _sources(settings, upstream, credentials)
        layers = FolderStore(data.layers, data.scratch)
        indexes = OpenIndexes(layers, catalog)
        ingest = Ingest(layers, catalog, indexes, executor, span_size=settings.span_size)
        registrar = Registrar(catalog, Parts(ingest, artifacts, catalog, sources), artifacts)
        shelf = Shelf(catalog, store, indexes, artifacts, sources, registrar.restore)
        services = cls(
            settings,
            data,
            catalog,
            artifacts,
            store,
            disk,
            shelf,
            registrar,
            sources,
            credentials,
            upstream,
            (decoders, executor),
            locks,
        )
        await shelf.start()
        await registrar.start()
        return services

    async def check_spec(self, spec: DeviceSpec) -> None:
        """Raise at once for what can be known at once: a malformed reference, an artifact that is not there."""
        parse_reference(spec.source.image)
        for digest in (spec.metadata, spec.zinfo):
            if digest is not None:
                await self.artifacts.size(digest)

    async def aclose(self) -> None:
        """Stop everything; unfinished registrations go on at the next start."""
        await self.registrar.aclose()
        await self.store.aclose()
        await self.shelf.aclose()
        await self.sources.aclose()
        self.catalog.close()
        if self._locks is not None:
            self._locks.close()
        for executor in self._executors:
            executor.shutdown(wait=True, cancel_futures=True)


def _sources(settings: Settings, observer: CountingObserver, stored: StoredCredentials) -> ImageSources:
    files = settings.auth_files if settings.auth_files is not None else default_auth_files(environment())
    named = {
        name: Credentials(entry.username, entry.password, entry.identity_token, hosts=entry.hosts)
        for name, entry in settings.credentials.items()
    }
    registries = Registries(
        store=CredentialStore(files, named, stored=stored),
        transport=Transport(allowed=AllowList(settings.allow_addresses)),
        retrier=Retrier(
            RetryPolicy(
                attempt_seconds=settings.registry_attempt_seconds,
                deadline_seconds=settings.registry_deadline_seconds,
            ),
            budget=RetryBudget(),
            observer=observer,
            rng=random.Random(),  # noqa: S311 - jitter
        ),
        minimum_rate=MinimumRate(bytes_per_second=settings.registry_min_bytes_per_second),
        insecure_hosts=settings.insecure_registries,
        mirrors=settings.mirrors,
    )
    return ImageSources(registries, LayoutSource(settings.oci_roots))
