"""Content-addressed files: what administrators upload (metadata, zinfo) and what is generated here.

``artifacts/sha256/<hex>``; written under a temporary name while the digest is computed, renamed when it is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from blockgate import durable
from blockgate.digests import hex_of, is_digest
from blockgate.reader import Bytes
from gateway.errors import (
    ArtifactDamaged,
    ArtifactNotFound,
    ContentMismatch,
    InvalidRequest,
    PayloadTooLarge,
    StorageError,
)

_STREAM_BYTES = 1 << 20


class Artifacts:
    """The store. Its calls do their work on threads; reads of parts go through ``LocalBlob``."""

    def __init__(self, folder: Path, scratch: Path, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._folder = folder
        self._scratch = scratch

    async def size(self, digest: str) -> int:
        """Bytes of an artifact. Raises ``ArtifactNotFound``, ``InvalidRequest`` for what is no digest, ``StorageError``."""
        return await asyncio.to_thread(self._size, digest)

    async def verified(self, digest: str) -> Path:
        """The file, read in full and found to have its digest.

        Raises ``ArtifactNotFound``; ``ArtifactDamaged`` when the disk changed it; ``StorageError``.
        """
        return await asyncio.to_thread(self._verified, digest)

    async def read(self, digest: str) -> bytes:
        """All of an artifact, verified. Raises as ``verified``."""
        return await asyncio.to_thread(self._read, digest)

    async def put(self, digest: str, body: AsyncIterator[bytes]) -> bool:
        """Store an upload; ``False`` when it was there already.

        Raises ``ContentMismatch`` when the bytes have another digest, ``PayloadTooLarge``, ``StorageError``.
        """
        target = self._path(digest)
        temporary = self.scratch()
        sha256 = hashlib.sha256()
        size = 0

        def append(file: BinaryIO, piece: bytes) -> None:
            file.write(piece)
            sha256.update(piece)

        def publish() -> bool:
            present = target.is_file()
            _replace(temporary, target)
            return not present

        try:
            file = await asyncio.to_thread(temporary.open, "xb")
            try:
                async for piece in body:
                    size += len(piece)
                    if size > self.max_bytes:
                        raise PayloadTooLarge(f"an artifact may have at most {self.max_bytes} bytes")
                    await asyncio.to_thread(append, file, piece)
            finally:
                await asyncio.to_thread(file.close)
            actual = f"sha256:{sha256.hexdigest()}"
            if actual != digest:
                raise ContentMismatch(f"the upload's digest is {actual}, its URL says {digest}")
            return await asyncio.to_thread(publish)
        except OSError as error:
            raise StorageError(f"the artifact cannot be stored: {error.strerror}") from error
        finally:
            await asyncio.to_thread(_remove, temporary)

    def scratch(self) -> Path:
        """A name for a file that is to become an artifact."""
        return self._scratch / durable.scratch_name("artifact")

    async def adopt(self, path: Path) -> str:
        """Make a finished scratch file an artifact, in place of a damaged one. Returns its digest."""

        def work() -> str:
            with path.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            _replace(path, self._path(digest))
            return digest

        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise StorageError(f"the artifact cannot be stored: {error.strerror}") from error

    def blob(self, digest: str, size: int) -> LocalBlob:
        """A reader of an artifact of ``size`` bytes."""
        return LocalBlob(self._path(digest), size)

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise InvalidRequest(f"{digest[:100]!r} is not of the form sha256:<64 hexadecimal digits>")
        return self._folder / hex_of(digest)

    def _size(self, digest: str) -> int:
        path = self._path(digest)
        with _named(digest):
            return path.stat().st_size

    def _verified(self, digest: str) -> Path:
        path = self._path(digest)
        with _named(digest), path.open("rb") as file:
            _check(digest, hashlib.file_digest(file, "sha256").hexdigest())
        return path

    def _read(self, digest: str) -> bytes:
        path = self._path(digest)
        with _named(digest):
            data = path.read_bytes()
            _check(digest, hashlib.sha256(data).hexdigest())
        return data


class LocalBlob:
    """A local file as a ``Blob``. It is opened for each read: nothing is held, and closing disturbs no reader.

    ``size`` is what the file has to have: one that is gone or shorter is ``ArtifactDamaged``, whatever was asked of it.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._path = path

    async def read(self, offset: int, length: int) -> Bytes:
        """Exactly these bytes. Raises ``ArtifactDamaged`` or ``StorageError``."""
        return await asyncio.to_thread(self._read, offset, length)

    async def stream(self, start: int = 0) -> AsyncIterator[Bytes]:
        """All bytes from ``start``."""
        for offset in range(start, self.size, _STREAM_BYTES):
            yield await self.read(offset, min(_STREAM_BYTES, self.size - offset))

    async def aclose(self) -> None:
        """Nothing is held."""

    def _read(self, offset: int, length: int) -> bytes:
        try:
            with self._path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), length, offset)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ArtifactDamaged(f"the artifact {self._path.name} is gone from the data folder") from error
        except OSError as error:
            raise StorageError(f"the artifact {self._path.name} cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise ArtifactDamaged(f"the artifact {self._path.name} became shorter")
        return data


@contextlib.contextmanager
def _named(digest: str) -> Iterator[None]:
    """Errors of a file as errors of the artifact."""
    try:
        yield
    except FileNotFoundError:
        raise ArtifactNotFound(
            f"there is no artifact {digest}; upload it with PUT /v1/artifacts/{digest}"
        ) from None
    except IsADirectoryError:
        _check(digest, "no file")
    except OSError as error:
        raise StorageError(f"the artifact {digest} cannot be read: {error.strerror}") from error


def _check(digest: str, actual: str) -> None:
    if actual != hex_of(digest):
        raise ArtifactDamaged(
            f"the artifact {digest} is damaged in the data folder; upload it again with PUT /v1/artifacts/{digest}"
        )


def _replace(temporary: Path, target: Path) -> None:
    """Give an artifact its name, whatever has it."""
    if target.is_dir():
        target.rmdir()
    durable.publish(temporary, target)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
