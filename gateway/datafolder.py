"""The data folder: the one place that knows where things lie in it.

::

    data/
      VERSION            what made the folder, and its own id
      catalog.sqlite     the catalog, unless it is elsewhere
      layers/            layer indexes (layers/folder.py)
      artifacts/sha256/  uploads and generated metadata (artifacts.py)
      cache/             decoded spans (spans/disk.py)
      credentials.json   registries' credentials that were given over the API
      run/               what the workers count; of one life of the gateway
      tmp/               what is not complete yet
      locks/             held while a gateway runs; nothing in it matters afterwards
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockgate import durable
from gateway.errors import ConfigurationError, StorageError
from gateway.locks import try_lock

FORMAT = 2


class DataFolder:
    """Paths below ``root``. Making one touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = root / "VERSION"
        self.catalog = root / "catalog.sqlite"
        self.layers = root / "layers"
        self.artifacts = root / "artifacts" / "sha256"
        self.cache = root / "cache"
        self.credentials = root / "credentials.json"
        self.run = root / "run"
        self.scratch = root / "tmp"
        self.locks = root / "locks"
        self.generation = self.locks / "generation"
        self.span_locks = self.locks / "spans"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Around a gateway's life, in its first process: make the folder or check it, and keep other gateways out.

        What earlier processes left unfinished is removed. Raises ``StorageError``, and ``ConfigurationError`` for a
        folder of another version or one that another gateway uses.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._check()
            self.locks.mkdir(exist_ok=True)
            lock = try_lock(self.locks / "gateway")
        except OSError as error:
            raise StorageError(
                f"the data folder {self.root} cannot be used: {error.strerror}; choose one with --data-dir"
            ) from error
        if lock is None:
            raise ConfigurationError(
                f"another gateway uses the data folder {self.root}; choose another with --data-dir"
            )
        with lock:
            try:
                # Under the lock: of two that start together, one makes the id. And first of all: without it, what is made
                # below would be taken for version 0.1.
                if not self.version.exists():
                    text = json.dumps({"format": FORMAT, "id": uuid.uuid4().hex})
                    durable.replace(self.version, text.encode(), mode=0o644)
                for folder in (self.layers, self.artifacts, self.cache, self.scratch):
                    folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"{error.filename} cannot be made: {error.strerror}") from error
            # What earlier workers counted ends with them, so that all counters begin at 0 together.
            shutil.rmtree(self.run, ignore_errors=True)
            self.sweep()
            yield

    def sweep(self, pid: int | None = None) -> None:
        """Remove what dead processes left unfinished: all, while no other works here, or that of the process ``pid``."""
        for folder in (self.root, self.scratch, self.cache / "tmp"):
            durable.sweep(folder, pid)

    def id(self) -> str:
        """What tells this folder from others, for example in leases. Raises ``StorageError``."""
        try:
            return str(json.loads(self.version.read_text())["id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self.version} cannot be read") from error

    def _check(self) -> None:
        try:
            found = json.loads(self.version.read_text())["format"]
        except FileNotFoundError:
            if self.catalog.exists() or self.layers.exists():
                raise ConfigurationError(
                    f"the data folder {self.root} was made by version 0.1, which kept things otherwise; "
                    "choose an empty folder with --data-dir and register the devices again"
                ) from None
            return
        except (ValueError, KeyError, TypeError):
            found = None
        if found != FORMAT:
            raise ConfigurationError(
                f"the data folder {self.root} has format {found}, this version reads {FORMAT}; "
                "run the version that made it, or choose another folder with --data-dir"
            )
