"""The composition root: the one place that knows every part and joins them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gateway.artifacts import Artifacts
from gateway.config import Settings, environment
from gateway.devices.catalog import Catalog, Generation, migrate
from gateway.devices.registration import Registrar
from gateway.devices.shelf import Shelf
from gateway.devices.spec import DeviceSpec
from gateway.errors import ConfigurationError, StorageError
from gateway.ingest.folder import LayerFolders
from gateway.ingest.ingest import Ingest
from gateway.locks import try_lock
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
from gateway.spans.disk import DiskTier
from gateway.spans.locks import NoLocks, SpanLocks
from gateway.spans.memory import MemoryTier
from gateway.spans.store import SpanStore


@contextmanager
def prepared(settings: Settings) -> Iterator[None]:
    """Around a gateway's life, in its first process: make the folders, migrate the catalog, sweep what a crash left.

    Raises ``StorageError``, and ``ConfigurationError`` when another gateway uses the data folder.
    """
    root = settings.data_dir
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in ("cache", "layers", "artifacts", "locks"):
            (root / name).mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the data folder {root} cannot be used: {error.strerror}; choose one with --data-dir"
        ) from error
    lock = try_lock(root / "locks" / "gateway")
    if lock is None:
        raise ConfigurationError(
            f"another gateway uses the data folder {root}; choose another with --data-dir"
        )
    with lock:
        migrate(settings.catalog_url)
        # What earlier workers counted ends with them, so that all counters begin at 0 together.
        shutil.rmtree(root / "run", ignore_errors=True)
        sweep(settings)
        yield


def sweep(settings: Settings, pid: int | None = None) -> None:
    """Remove what killed processes left unfinished: all of them, or the one worker of that id while others go on."""
    root = settings.data_dir
    LayerFolders(root / "layers").sweep(pid)
    Artifacts(root / "artifacts", max_bytes=0).sweep(pid)
    DiskTier(root / "cache", settings.disk_cache).sweep(pid)
    if pid is None:
        _stored_credentials(settings).sweep()


def _stored_credentials(settings: Settings) -> StoredCredentials:
    return StoredCredentials(settings.data_dir / "credentials.json")


@dataclass
class Services:
    """Everything that one worker needs, started and stopped as one."""

    settings: Settings
    catalog: Catalog
    artifacts: Artifacts
    store: SpanStore
    shelf: Shelf
    registrar: Registrar
    sources: ImageSources
    credentials: StoredCredentials
    upstream: CountingObserver
    _executors: tuple[ThreadPoolExecutor, ...]
    _locks: SpanLocks | NoLocks

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Build all parts on the running loop and go on with unfinished registrations."""
        root: Path = settings.data_dir
        executor = ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) * 2 + 2, thread_name_prefix="work")
        catalog = Catalog(settings.catalog_url, Generation(root / "locks" / "generation"), executor)
        artifacts = Artifacts(root / "artifacts", max_bytes=settings.max_artifact)
        folders = LayerFolders(root / "layers")
        decoders = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="decode")
        locks = NoLocks() if settings.workers == 1 else SpanLocks(root / "locks" / "spans")
        store = SpanStore(
            MemoryTier(settings.memory_cache // settings.workers),
            DiskTier(root / "cache", settings.disk_cache, sharers=settings.workers),
            locks,
            executor,
            decoders=decoders,
            concurrent_fetches=settings.concurrent_fetches,
            flying_limit_bytes=settings.max_fetching,
        )
        upstream = CountingObserver()
        credentials = _stored_credentials(settings)
        sources = _sources(settings, upstream, credentials)
        registrar = Registrar(
            catalog,
            Ingest(folders, executor, span_size=settings.span_size),
            artifacts,
            sources,
            root / "locks",
        )
        shelf = Shelf(catalog, store, folders, artifacts, sources)
        shelf.on_reindex = registrar.begin
        services = cls(
            settings,
            catalog,
            artifacts,
            store,
            shelf,
            registrar,
            sources,
            credentials,
            upstream,
            (decoders, executor),
            locks,
        )
        await registrar.start()
        return services

    def check_spec(self, spec: DeviceSpec) -> None:
        """Raise at once for what can be known at once: a malformed reference, an artifact that is not there."""
        parse_reference(spec.source.image)
        for digest in (spec.metadata, spec.zinfo):
            if digest is not None:
                self.artifacts.find(digest)

    async def aclose(self) -> None:
        """Stop everything; unfinished registrations go on at the next start."""
        await self.registrar.aclose()
        await self.store.aclose()
        await self.shelf.aclose()
        await self.sources.aclose()
        self.catalog.close()
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
