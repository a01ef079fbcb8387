"""Content-addressed files: what administrators upload (metadata, zinfo) and what is generated here.

``artifacts/sha256/<hex>``; written under a temporary name while the digest is computed, renamed when it is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Protocol

from blockgate.reader import Bytes, check_bounds
from gateway.errors import ArtifactNotFound, ContentMismatch, InvalidRequest, PayloadTooLarge, StorageError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TEMPORARY = ".tmp"
_STREAM_BYTES = 1 << 20


class Sha256(Protocol):
    """What is used of a hashlib object."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""
        ...


class Artifacts:
    """The store. Reads go through ``LocalBlob``."""

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._folder = root / "sha256"
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where an artifact lies. Raises ``InvalidRequest`` for what is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidRequest(f"{digest[:100]!r} is not of the form sha256:<64 hexadecimal digits>")
        return self._folder / digest.removeprefix("sha256:")

    def find(self, digest: str) -> Path:
        """The file. Raises ``ArtifactNotFound``."""
        path = self.path(digest)
        if not path.is_file():
            raise ArtifactNotFound(
                f"there is no artifact {digest}; upload it with PUT /v1/artifacts/{digest}"
            )
        return path

    def verified(self, digest: str) -> Path:
        """The file, read in full and found to have its digest; blocking.

        Raises ``ArtifactNotFound``, or ``StorageError`` when the disk changed it.
        """
        path = self.find(digest)
        try:
            with path.open("rb") as file:
                actual = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise StorageError(f"the artifact {digest} cannot be read: {error.strerror}") from error
        if actual != digest:
            raise StorageError(
                f"the artifact {digest} is damaged in the data folder; upload it again with PUT /v1/artifacts/{digest}"
            )
        return path

    async def put(self, digest: str, body: AsyncIterator[bytes]) -> bool:
        """Store an upload; ``False`` when it was there already.

        Raises ``ContentMismatch`` when the bytes have another digest, ``PayloadTooLarge``, ``StorageError``.
        """
        target = self.path(digest)
        present = target.is_file()
        temporary = self.scratch()
        sha256 = hashlib.sha256()
        size = 0
        try:
            with temporary.open("xb") as file:
                async for piece in body:
                    size += len(piece)
                    if size > self.max_bytes:
                        raise PayloadTooLarge(f"an artifact may have at most {self.max_bytes} bytes")
                    await asyncio.to_thread(_append, file, sha256, piece)
                await asyncio.to_thread(_sync, file)
            actual = f"sha256:{sha256.hexdigest()}"
            if actual != digest:
                raise ContentMismatch(f"the upload's digest is {actual}, its URL says {digest}")
            temporary.rename(target)
        except OSError as error:
            raise StorageError(f"the artifact cannot be stored: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return not present

    def scratch(self) -> Path:
        """A name for a file that is to become an artifact."""
        return self._folder / f"new.{os.getpid()}.{uuid.uuid4().hex[:8]}{_TEMPORARY}"

    def adopt(self, path: Path) -> str:
        """Make a finished scratch file an artifact; blocking. Returns its digest."""
        try:
            with path.open("r+b") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
                os.fsync(file.fileno())
            path.rename(self.path(digest))
        except OSError as error:
            raise StorageError(f"the artifact cannot be stored: {error.strerror}") from error
        return digest

    def sweep(self, pid: int | None = None) -> int:
        """Remove unfinished files: of all processes, while no other works here, or those of the one of that id."""
        removed = 0
        for path in self._folder.glob(f"*{_TEMPORARY}" if pid is None else f"*.{pid}.*{_TEMPORARY}"):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
        return removed


class LocalBlob:
    """A local file as a ``Blob``. It is opened for each read: nothing is held, and closing disturbs no reader."""

    def __init__(self, path: Path) -> None:
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
        self._path = path

    async def read(self, offset: int, length: int) -> Bytes:
        """Exactly these bytes."""
        check_bounds(offset, length, self.size)
        try:
            data = await asyncio.to_thread(_read, self._path, offset, length)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise StorageError(f"{self._path} became shorter")
        return data

    async def stream(self, start: int = 0) -> AsyncIterator[Bytes]:
        """All bytes from ``start``."""
        for offset in range(start, self.size, _STREAM_BYTES):
            yield await self.read(offset, min(_STREAM_BYTES, self.size - offset))

    async def aclose(self) -> None:
        """Nothing is held."""


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def _append(file: BinaryIO, sha256: Sha256, piece: bytes) -> None:
    file.write(piece)
    sha256.update(piece)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
