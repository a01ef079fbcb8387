"""Writing a layer index folder: everything under a temporary name, renamed when it is complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.errors import StorageError
from gateway.gzran import zinfo
from gateway.locks import try_lock
from gateway.spans.index import CHECKPOINTS, FACTS, SPANS, TOC, LayerFacts
from gateway.spans.table import SpanTable

_TEMPORARY = ".tmp"


class LayerFolders:
    """The ``layers`` folder of a data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, blob: str, index_id: str) -> Path:
        """Where the index of a blob lies, whether or not it exists."""
        return self.root / blob.rpartition(":")[2] / index_id

    def begin(self, blob: str, index_id: str) -> FolderWriter:
        """A writer of a folder to come."""
        return FolderWriter(self.path(blob, index_id))

    def try_lock(self, blob: str, index_id: str) -> AbstractContextManager[None] | None:
        """Become the one who indexes this layer, or ``None`` when another is."""
        target = self.path(blob, index_id)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return try_lock(target.with_name(f"{target.name}.lock"))
        except OSError as error:
            raise StorageError(f"{target.parent} cannot be written: {error.strerror}") from error

    def discard(self, blob: str, index_id: str) -> None:
        """Remove an index that proved to be damaged; whoever has it open keeps what is mapped."""
        shutil.rmtree(self.path(blob, index_id), ignore_errors=True)

    def sweep(self, pid: int | None = None) -> int:
        """Remove what killed processes left unfinished: all of them, while no other works here, or the one of that id."""
        removed = 0
        for path in self.root.glob(f"*/*{_TEMPORARY}" if pid is None else f"*/*.{pid}.*{_TEMPORARY}"):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
        return removed


class FolderWriter:
    """The files of one index while the pass runs. A context manager: leaving it without ``commit`` removes everything."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.work = target.with_name(f"{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
        self._checkpoints = 0
        self._span_size = 0
        try:
            self.work.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{self.work} cannot be made: {error.strerror}") from error
        self._zinfo = (self.work / CHECKPOINTS).open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk refuses what is still buffered
            self._zinfo.close()
        shutil.rmtree(self.work, ignore_errors=True)

    @property
    def toc_path(self) -> Path:
        """Where the table of contents is to be written."""
        return self.work / TOC

    def begin_checkpoints(self, span_size: int) -> None:
        """Start the zinfo with a header that ``commit`` completes."""
        self._span_size = span_size
        self._zinfo.write(zinfo.header(0, span_size))

    def checkpoint(self, checkpoint: zinfo.Checkpoint, window: bytes | memoryview) -> None:
        """Append one checkpoint."""
        self._zinfo.write(zinfo.record(checkpoint, window))
        self._checkpoints += 1

    def commit(self, facts: LayerFacts, table: SpanTable) -> None:
        """Complete the folder and give it its name."""
        try:
            if self._span_size:
                self._zinfo.seek(0)
                self._zinfo.write(zinfo.header(self._checkpoints, self._span_size))
            self._zinfo.close()
            if not self._span_size:
                (self.work / CHECKPOINTS).unlink()
            (self.work / SPANS).write_bytes(table.records)
            (self.work / FACTS).write_text(facts.model_dump_json(indent=2))
            for path in self.work.iterdir():
                _sync(path)
            # A damaged folder of that name is replaced; a good one was found before the pass began.
            if self.target.exists():
                shutil.rmtree(self.target)
            self.work.rename(self.target)
            _sync(self.target.parent)
        except OSError as error:
            raise StorageError(f"{self.target} cannot be written: {error.strerror}") from error


def spans_digest(table: SpanTable) -> str:
    """Digest of a span table, for ``LayerFacts``."""
    return hashlib.sha256(table.records).hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
