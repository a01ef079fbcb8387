"""Layer indexes in a folder of this machine: ``layers/<blob hex>/<cut>/<attempt>/``."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from blockgate import durable
from blockgate.digests import hex_of
from gateway.errors import IndexAbsent, IndexDamaged, StorageError
from gateway.gzran import zinfo
from gateway.layers.index import (
    CHECKPOINTS,
    FACTS,
    LEAVES,
    SPANS,
    TOC,
    FileFacts,
    FileWindows,
    IndexFacts,
    IndexRow,
    LayerIndex,
    parse_index,
    read_file,
)
from gateway.layers.key import LayerKey


class FolderStore:
    """A ``LayerStore``. What is unfinished lies in ``scratch``, on the same file system."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root = root
        self._scratch = scratch

    async def open(self, key: LayerKey, row: IndexRow) -> LayerIndex:
        """Read and check the two small files."""
        return await asyncio.to_thread(self._open, key, row)

    async def contents(self, index: LayerIndex) -> Path:
        """The file in its place, read once and found to have its digest."""
        return await asyncio.to_thread(self._contents, index)

    @asynccontextmanager
    async def draft(self, key: LayerKey) -> AsyncIterator[FolderDraft]:
        """A folder in ``scratch``."""
        draft = await asyncio.to_thread(FolderDraft, self._scratch, self._root, key)
        try:
            yield draft
        finally:
            await asyncio.shield(asyncio.to_thread(draft.discard))

    async def drop(self, key: LayerKey, attempt: str) -> None:
        """Remove its folder. What a disk that fails keeps of it is swept at the next start."""
        await asyncio.to_thread(self._drop, key, attempt)

    async def drop_copies(self, key: LayerKey, row: IndexRow) -> None:
        """Remove the attempt's folder, and those of equal ones."""
        await asyncio.to_thread(self._drop_copies, key, row)

    def _path(self, key: LayerKey, attempt: str) -> Path:
        return self._root / hex_of(key.blob) / key.cut / attempt

    def sweep(self, rows: Mapping[LayerKey, IndexRow]) -> int:
        """Remove every attempt that is not the one that counts; blocking, while no other process works here."""
        removed = 0
        for path in list(self._attempts()):
            key = LayerKey(f"sha256:{path.parent.parent.name}", path.parent.name)
            row = rows.get(key)
            # What cannot be read just now is kept: nothing is concluded from that.
            with suppress(StorageError):
                if row is None or (path.name != row.attempt and not _is(path, row)):
                    self._drop(key, path.name)
                    removed += 1
        return removed

    def _attempts(self) -> Iterator[Path]:
        """Every attempt that can be seen."""
        folders = [self._root]
        for _ in range(3):
            found: list[Path] = []
            for folder in folders:
                with suppress(StorageError):
                    found += _inside(folder)
            folders = found
        yield from folders

    def _find(self, key: LayerKey, row: IndexRow) -> Path:
        """Where the attempt lies here, under its own name or as this machine's equal copy of one that another replica made.

        Raises ``IndexAbsent`` or ``StorageError``.
        """
        folder = self._path(key, row.attempt)
        try:
            folder.stat()
            return folder
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise StorageError(f"{folder} cannot be read: {error.strerror}") from error
        for other in _inside(folder.parent):
            if _is(other, row):
                return other
        raise IndexAbsent(f"{folder} is not there")

    def _open(self, key: LayerKey, row: IndexRow) -> LayerIndex:
        folder = self._find(key, row)
        try:
            facts, spans = read_file(folder / FACTS), read_file(folder / SPANS)
        except IndexAbsent as error:
            raise IndexDamaged(f"{folder} is not whole: {error.detail}") from error
        index = parse_index(key, row, facts, spans, FileWindows(folder / CHECKPOINTS))
        if index.codec.windowed:
            _check_size(folder / CHECKPOINTS, index.facts.files.get(CHECKPOINTS))
        return index

    def _contents(self, index: LayerIndex) -> Path:
        path = self._find(index.key, index.row) / TOC
        known = index.facts.files.get(TOC)
        if known is None:
            raise IndexDamaged(f"the index of layer {index.key.blob} has no table of contents")
        try:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise IndexDamaged(f"{path} is lost") from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        if actual != known.sha256:
            raise IndexDamaged(f"{path} does not have its digest")
        return path

    def _drop(self, key: LayerKey, attempt: str) -> None:
        path = self._path(key, attempt)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        for parent in (path.parent, path.parent.parent):
            with suppress(OSError):  # another cut or attempt is in it
                parent.rmdir()

    def _drop_copies(self, key: LayerKey, row: IndexRow) -> None:
        for other in _inside(self._path(key, row.attempt).parent):
            if other.name == row.attempt or _is(other, row):
                self._drop(key, other.name)


class FolderDraft:
    """A ``Draft``: one folder, renamed when it is published."""

    def __init__(self, scratch: Path, root: Path, key: LayerKey) -> None:
        self.attempt = uuid.uuid4().hex
        self._target = root / hex_of(key.blob) / key.cut / self.attempt
        self._work = scratch / durable.scratch_name("layer")
        self._windows: BinaryIO | None = None
        self._checkpoints = 0
        self._span_size = 0
        self._row: IndexRow | None = None
        try:
            self._work.mkdir()
        except OSError as error:
            raise StorageError(f"{self._work} cannot be made: {error.strerror}") from error

    @property
    def contents_path(self) -> Path:
        """In the folder."""
        return self._work / TOC

    def begin_checkpoints(self, span_size: int) -> None:
        """Write a head that ``complete`` writes again when the count is known."""
        self._span_size = span_size
        self._windows = (self._work / CHECKPOINTS).open("wb")
        self._windows.write(zinfo.header(0, span_size))

    def checkpoint(self, checkpoint: zinfo.Checkpoint, window: bytes) -> None:
        """Append one record."""
        if self._windows is not None:
            self._windows.write(zinfo.record(checkpoint, window))
            self._checkpoints += 1

    def complete(self, facts: IndexFacts, spans: bytes, leaves: bytes) -> None:
        """Write the other files, ``index.json`` last. Raises ``OSError``."""
        if self._windows is not None:
            self._windows.seek(0)
            self._windows.write(zinfo.header(self._checkpoints, self._span_size))
            self._windows.close()
        (self._work / SPANS).write_bytes(spans)
        (self._work / LEAVES).write_bytes(leaves)
        files = {path.name: _file_facts(path) for path in sorted(self._work.iterdir())}
        text = facts.model_copy(update={"files": files}).model_dump_json(indent=2).encode()
        (self._work / FACTS).write_bytes(text)
        length = len(text) + sum(known.size for known in files.values())
        self._row = IndexRow(attempt=self.attempt, sha256=hashlib.sha256(text).hexdigest(), bytes=length)

    async def publish(self) -> IndexRow:
        """Rename the folder, once its files are on the disk."""
        return await asyncio.to_thread(self._publish)

    def _publish(self) -> IndexRow:
        assert self._row is not None  # noqa: S101 - ``complete`` comes before
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            durable.publish(self._work, self._target)
            durable.sync_folder(self._target.parent.parent)
            durable.sync_folder(self._target.parent.parent.parent)
        except OSError as error:
            raise StorageError(f"{self._target} cannot be written: {error.strerror}") from error
        return self._row

    def discard(self) -> None:
        """Remove what was not published."""
        if self._windows is not None:
            with suppress(OSError):  # a full disk refuses what is still buffered
                self._windows.close()
        shutil.rmtree(self._work, ignore_errors=True)


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder, nothing where there is none. Raises ``StorageError``: ``glob`` takes a limit for nothing."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}") from error


def _is(folder: Path, row: IndexRow) -> bool:
    """Whether this is the attempt or its equal. Raises ``StorageError``."""
    try:
        return hashlib.sha256(read_file(folder / FACTS)).hexdigest() == row.sha256
    except (IndexAbsent, IndexDamaged):
        return False


def _check_size(path: Path, known: FileFacts | None) -> None:
    """Find a file that is lost or cut before a read needs it. Raises ``IndexDamaged`` or ``StorageError``."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexDamaged(f"{path} is lost") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    if known is None or size != known.size:
        raise IndexDamaged(f"{path} is not as long as it was written")


def _file_facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        return FileFacts(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
