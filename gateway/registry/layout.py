"""OCI image layout folders (image-spec, image-layout.md) as an image source: ``oci:DIR[:TAG]``.

Only what lies below the configured roots is read. The check is made on the file that was opened, not on its
name: a symbolic link that leads out of the roots, also one put there between look and open, is refused.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from blockgate.reader import Blob, Bytes, check_bounds
from gateway.errors import (
    BlobMismatch,
    BlobNotFound,
    ImageNotFound,
    InvalidManifest,
    PathNotAllowed,
    StorageError,
    TruncatedBody,
    UpstreamError,
)
from gateway.registry.manifest import (
    CONFIG_LIMIT_BYTES,
    MANIFEST_LIMIT_BYTES,
    Entry,
    Index,
    parse_manifest,
    verify_digest,
)
from gateway.registry.platform import parse_platform
from gateway.registry.reference import Reference
from gateway.registry.resolve import resolve_image
from gateway.registry.source import Descriptor, Image

_PIECE_BYTES = 1024 * 1024
_REF_NAME = "org.opencontainers.image.ref.name"
# containerd and docker write the whole name here, and only the tag into ref.name.
_FULL_NAME = "io.containerd.image.name"


class LayoutSource:
    """Reads layout folders below ``roots``. A relative DIR is looked for below each root in turn."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)

    async def resolve(self, reference: Reference, platform: str) -> Image:
        """Find the image for ``platform``, with every document's digest verified.

        Without a tag, ``index.json`` is searched as a whole. Raises ``PathNotAllowed``, ``ImageNotFound``,
        ``PlatformNotFound``, ``InvalidManifest``, ``ManifestMismatch`` or ``BlobNotFound``.
        """
        wanted = parse_platform(platform)
        documents = _Documents(self._folder(reference), self._roots, reference)
        root = await asyncio.to_thread(documents.root)
        return await resolve_image(documents, root, "", reference=str(reference), wanted=wanted)

    async def open_blob(self, reference: Reference, descriptor: Descriptor) -> Blob:
        """A reader of one blob. Raises ``BlobNotFound``, or ``BlobMismatch`` for a file of another size."""
        path = _blob_path(self._folder(reference), descriptor.digest)
        descriptor_file = await asyncio.to_thread(_open, path, self._roots, BlobNotFound, str(reference))
        blob = LayoutBlob(descriptor_file, descriptor, f"{reference}: {descriptor.digest}")
        found = os.fstat(descriptor_file).st_size
        if found != descriptor.size:
            await blob.aclose()
            raise BlobMismatch(
                f"{reference}: {descriptor.digest} has {found} bytes, its descriptor says {descriptor.size}"
            )
        return blob

    async def aclose(self) -> None:
        """Nothing is held: each blob has its own file."""

    def _folder(self, reference: Reference) -> Path:
        if not self._roots:
            raise PathNotAllowed(f"{reference}: no folder may be read; name one with --oci-root")
        asked = Path(reference.repository)
        candidates = [Path(os.path.realpath(root / asked)) for root in self._roots]
        allowed = [path for path in candidates if _below(path, self._roots)]
        if not allowed:
            raise PathNotAllowed(f"{reference}: the folder is outside of the configured roots (--oci-root)")
        return next((path for path in allowed if (path / "index.json").is_file()), allowed[0])


class LayoutBlob:
    """A blob's file. Reads run on threads; the file is closed when the last of them has ended."""

    def __init__(self, descriptor_file: int, descriptor: Descriptor, where: str) -> None:
        self._file, self._descriptor, self._where = descriptor_file, descriptor, where
        self._lock = threading.Lock()
        self._readers = 0
        self._closing = False

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._descriptor.size

    async def read(self, offset: int, length: int) -> Bytes:
        """Exactly ``length`` bytes. Raises ``TruncatedBody`` or ``StorageError``."""
        check_bounds(offset, length, self.size)
        return await asyncio.to_thread(self._read, offset, length)

    async def stream(self, start: int = 0) -> AsyncIterator[Bytes]:
        """The bytes from ``start`` to the end in pieces of 1 MiB."""
        check_bounds(start, 0, self.size)
        for position in range(start, self.size, _PIECE_BYTES):
            yield await self.read(position, min(_PIECE_BYTES, self.size - position))

    async def aclose(self) -> None:
        """Close the file, after reads that are under way."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            if self._readers == 0:
                os.close(self._file)

    def _read(self, offset: int, length: int) -> memoryview:
        # A cancelled caller leaves this running, so that the thread itself must keep the file open.
        with self._lock:
            if self._closing:
                raise StorageError(f"{self._where}: read after closing")
            self._readers += 1
        try:
            buffer = memoryview(bytearray(length))
            filled = 0
            while filled < length:
                count = os.preadv(self._file, [buffer[filled:]], offset + filled)
                if count == 0:
                    raise TruncatedBody(f"{self._where}: the file ends at byte {offset + filled}")
                filled += count
            return buffer.toreadonly()
        except OSError as error:
            raise StorageError(f"{self._where}: {error.strerror}") from error
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if self._closing and self._readers == 0:
                os.close(self._file)


class _Documents:
    """The small documents of one folder."""

    def __init__(self, folder: Path, roots: Sequence[Path], reference: Reference) -> None:
        self._folder, self._roots, self._reference = folder, roots, reference

    def root(self) -> Index:
        """The entries of index.json that the reference names."""
        where = str(self._reference)
        if self._reference.digest:
            return Index((Entry(Descriptor("", self._reference.digest, 0), None),))
        body = self._read(self._folder / "index.json", MANIFEST_LIMIT_BYTES, ImageNotFound)
        index = parse_manifest(body, "", f"{where}: index.json")
        if not isinstance(index, Index):
            raise InvalidManifest(f"{where}: index.json is not an index")
        tag = self._reference.tag
        if tag is None:
            return index
        entries = tuple(entry for entry in index.entries if _carries(entry.descriptor, tag))
        if not entries:
            tags = sorted({entry.descriptor.annotations.get(_REF_NAME, "") for entry in index.entries} - {""})
            raise ImageNotFound(f"{where}: no such tag; there are {', '.join(tags)[:1000] or 'none'}")
        return Index(entries)

    async def manifest(self, descriptor: Descriptor) -> tuple[bytes, str]:
        return await self._verified(descriptor, MANIFEST_LIMIT_BYTES, ImageNotFound), ""

    async def config(self, descriptor: Descriptor) -> bytes:
        return await self._verified(descriptor, CONFIG_LIMIT_BYTES, BlobNotFound)

    async def _verified(
        self, descriptor: Descriptor, limit_bytes: int, missing: type[UpstreamError]
    ) -> bytes:
        path = _blob_path(self._folder, descriptor.digest)
        body = await asyncio.to_thread(self._read, path, limit_bytes, missing)
        verify_digest(body, descriptor.digest, str(self._reference))
        return body

    def _read(self, path: Path, limit_bytes: int, missing: type[UpstreamError]) -> bytes:
        descriptor = _open(path, self._roots, missing, str(self._reference))
        with os.fdopen(descriptor, "rb") as stream:
            body = stream.read(limit_bytes + 1)
        if len(body) > limit_bytes:
            raise InvalidManifest(f"{self._reference}: {path.name} is longer than {limit_bytes} bytes")
        return body


def _carries(descriptor: Descriptor, tag: str) -> bool:
    name = descriptor.annotations.get(_REF_NAME, "")
    full = descriptor.annotations.get(_FULL_NAME, "")
    return tag in {name, name.rpartition(":")[2], full.rpartition(":")[2]}


def _blob_path(folder: Path, digest: str) -> Path:
    algorithm, _, encoded = digest.partition(":")
    return folder / "blobs" / algorithm / encoded


def _below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _open(path: Path, roots: Sequence[Path], missing: type[UpstreamError], where: str) -> int:
    """A descriptor of the regular file ``path``, which lies below a root whatever links led there."""
    try:
        # O_NONBLOCK: a FIFO in the place of a blob must not hang the thread.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(f"{where}: {path.name} is not in the folder") from error
    except OSError as error:
        raise StorageError(f"{where}: {path.name} cannot be opened: {error.strerror}") from error
    try:
        if not _below(Path(f"/proc/self/fd/{descriptor}").readlink(), roots):
            raise PathNotAllowed(f"{where}: {path.name} is a link that leads out of the configured roots")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise missing(f"{where}: {path.name} is not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
