"""Decoded spans on disk: one file each, shared by all workers of one data folder.

A file is an 80-byte header (magic, sha256 of the key, length u64 little-endian, sha256 of the content) and the
content. It is written under a temporary name and renamed, without fsync: a file torn by a crash of the machine fails its
check on the next read, is removed and counts as a miss. All methods block and run on a thread; ``DiskTier`` puts them there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from blockgate import durable
from blockgate.reader import Bytes
from gateway.layers.key import LayerKey, SpanKey
from gateway.locks import held
from gateway.spans.locks import SpanLocks
from gateway.spans.tier import Origin

P = ParamSpec("P")
T = TypeVar("T")

_HEADER = struct.Struct("<8s32sQ32s")
_MAGIC = b"bgspan\x00\x01"
_SUFFIX = ".span"
# A hit refreshes a file's time stamp at most this often; eviction needs no finer order.
_TOUCH_SECONDS = 60.0
_FIRST_BYPASS_SECONDS = 1.0
_LONGEST_BYPASS_SECONDS = 30.0


class SpanFiles:
    """Verified spans on disk under a byte budget.

    Above ``high_bytes`` the longest unused files are removed until ``low_bytes`` are left. ``sharers`` is the number of
    processes that write to the folder: each looks at what is really there after its share of the room is used up, so that
    together they stay below the budget. A write that fails (disk full, read-only, I/O error) is counted by errno
    and writing pauses, a little longer each time, so that a full disk costs nothing and recovers by itself.
    """

    def __init__(
        self, folder: Path, high_bytes: int, low_bytes: int | None = None, *, sharers: int = 1
    ) -> None:
        self.folder = folder
        self.high_bytes = high_bytes
        self.low_bytes = high_bytes * 9 // 10 if low_bytes is None else low_bytes
        self.scratch = folder / "tmp"
        self.errors: Counter[str] = Counter()
        """Reads and writes that failed, by errno."""
        self.corrupt = 0
        self.evicted = 0
        self.used_bytes = 0
        self.sharers = sharers
        self._written = 0
        self._writing = 0
        self._room = 0
        self._lock = threading.Lock()
        self._left: set[Path] = set()
        self._bypass_until = 0.0
        self._bypass_seconds = _FIRST_BYPASS_SECONDS
        with contextlib.suppress(OSError):
            self.scratch.mkdir(parents=True, exist_ok=True)
        self._measure()

    @property
    def bypassed(self) -> bool:
        """Whether writing pauses after an error."""
        return time.monotonic() < self._bypass_until

    def read(self, key: SpanKey, sha256: bytes) -> bytes | None:
        """The span if its file is whole and its content has the digest; a damaged file is removed."""
        path = self._path(key)
        try:
            with path.open("rb", buffering=0) as file:
                header = file.read(_HEADER.size)
                size = os.fstat(file.fileno()).st_size - _HEADER.size
                # What is not as long as it says is not read: it may be of any length.
                known = size >= 0 and header == _header(key, size, sha256)
                data = file.read(size) if known else b""
                if os.fstat(file.fileno()).st_mtime < time.time() - _TOUCH_SECONDS:
                    with contextlib.suppress(OSError):
                        os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            self.errors[_name(error)] += 1
            return None
        if known and hashlib.sha256(data).digest() == sha256:
            return data
        self.corrupt += 1
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def write(self, key: SpanKey, data: Bytes, sha256: bytes) -> bool:
        """Keep a verified span. Returns whether it was written; never raises for what a disk may do."""
        if self.high_bytes < len(data) + _HEADER.size or self.bypassed:
            return False
        path = self._path(key)
        size = len(data) + _HEADER.size
        temporary = self.scratch / durable.scratch_name("span")
        with contextlib.suppress(OSError):
            # Somebody may have emptied the folder.
            self.scratch.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if not self._reserve(size):
                return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb", buffering=0) as file:
                pieces = [memoryview(_header(key, len(data), sha256)), memoryview(data)]
                total = sum(len(piece) for piece in pieces)
                if os.writev(file.fileno(), pieces) != total:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # In one step for whoever measures: either a write under way or a file, never both.
            with self._lock:
                temporary.rename(path)
                self._writing -= size
        except OSError as error:
            self._failed(error, temporary, size)
            return False
        self._bypass_seconds = _FIRST_BYPASS_SECONDS
        self._remove_left()
        return True

    def held(self, layer: LayerKey) -> set[int]:
        """Numbers of the spans of one layer that lie on disk."""
        folder = self._path(SpanKey(layer.blob, layer.cut, 0)).parent
        try:
            names = [path.name for path in folder.iterdir()]
        except OSError:
            return set()
        return {int(name.removesuffix(_SUFFIX), 16) for name in names if name.endswith(_SUFFIX)}

    def drop(self) -> int:
        """Remove all spans. Returns the bytes freed."""
        freed = 0
        for path, size, _ in self._files():
            with contextlib.suppress(OSError):
                path.unlink()
                freed += size
        self.measure()
        return freed

    def measure(self) -> int:
        """Bytes that really lie in the folder, written by whomever."""
        with self._lock:
            self._measure()
            return self.used_bytes

    def _path(self, key: SpanKey) -> Path:
        blob = key.blob.rpartition(":")[2]
        return self.folder / blob[:2] / f"{blob}.{key.cut}" / f"{key.span:08x}{_SUFFIX}"

    def _files(self) -> list[tuple[Path, int, float]]:
        found = []
        for path in self.folder.glob(f"*/*/*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((path, status.st_size, status.st_mtime))
        return found

    def _measure(self) -> list[tuple[Path, int, float]]:
        files = self._files()
        # What is being written has no name yet.
        self.used_bytes = sum(size for _, size, _ in files) + self._writing
        self._written = 0
        self._room = max(0, self.high_bytes - self.used_bytes) // self.sharers
        return files

    def _reserve(self, size: int) -> bool:
        """Make room before a file is written, so that the budget holds at every moment. ``False`` if there is none."""
        if self._written + size > self._room:
            # One process evicts at a time; the others find room when they measure next. They do not wait for it: reads
            # share these threads, and it may hang.
            try:
                with held(self.folder / "evict.lock", wait=False):
                    self._evict(size)
            except BlockingIOError:
                return False
            except OSError as error:
                self.errors[_name(error)] += 1
                return False
            if self.used_bytes + size > self.high_bytes:
                return False
        self._written += size
        self._writing += size
        self.used_bytes += size
        return True

    def _evict(self, size: int) -> None:
        """Measure, and make room for ``size`` more bytes if there is none."""
        files = self._measure()
        # With others writing, a little is kept free: the last bytes would be measured again and again.
        spare = 0 if self.sharers == 1 else self.high_bytes // 32
        if self.used_bytes + size <= self.high_bytes - spare:
            return
        for path, file_size, _ in sorted(files, key=lambda entry: entry[2]):
            if self.used_bytes + size <= self.low_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                self.evicted += 1
                self.used_bytes -= file_size
        self._room = max(0, self.high_bytes - self.used_bytes) // self.sharers

    def _remove_left(self) -> None:
        """Remove what failed writes could not remove themselves."""
        for path in list(self._left):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                self._left.discard(path)

    def _failed(self, error: OSError, temporary: Path, size: int) -> None:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            # It turned read-only in the middle: removed when something can be written again.
            self._left.add(temporary)
        with self._lock:
            self.used_bytes -= size
            self._written -= size
            self._writing -= size
            self.errors[_name(error)] += 1
            if self.bypassed:
                return  # it began before the pause did: one full disk, not one more reason
            self._bypass_until = time.monotonic() + self._bypass_seconds
            self._bypass_seconds = min(self._bypass_seconds * 2, _LONGEST_BYPASS_SECONDS)


def _header(key: SpanKey, length: int, sha256: bytes) -> bytes:
    name = hashlib.sha256(f"{key.blob} {key.cut} {key.span}".encode()).digest()
    return _HEADER.pack(_MAGIC, name, length, sha256)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "EUNKNOWN")


class DiskTier:
    """A ``Tier`` over ``SpanFiles``: their calls on threads, and one fetch per span among all workers."""

    origin = Origin.DISK

    def __init__(self, files: SpanFiles, locks: SpanLocks | None, executor: ThreadPoolExecutor) -> None:
        self.files = files
        self._locks = locks
        self._executor = executor

    @property
    def used_bytes(self) -> int:
        """Bytes that this process knows of."""
        return self.files.used_bytes

    async def get(self, key: SpanKey, sha256: bytes) -> Bytes | None:
        """The span, if its file is whole."""
        return await self._run(self.files.read, key, sha256)

    async def put(self, key: SpanKey, data: Bytes, sha256: bytes) -> None:
        """Write the span's file."""
        await self._run(self.files.write, key, data, sha256)

    async def drop(self) -> int:
        """Remove all files."""
        return await self._run(self.files.drop)

    @asynccontextmanager
    async def alone(self, key: SpanKey) -> AsyncIterator[bool]:
        """Hold the span's lock. Another worker may have written the span since it was missed, also where nobody waited."""
        if self._locks is None:
            yield False
        else:
            async with self._locks.hold(key):
                yield True

    def held(self, layer: LayerKey) -> set[int]:
        """Numbers of the spans on disk; blocking."""
        return self.files.held(layer)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        work = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
