"""What one pass over a layer leaves behind: a folder, or the objects below a prefix.

::

    <blob hex>/<cut>/<attempt>/
        spans.bin           the span table (table.py)
        checkpoints.zinfo   windows of gzip checkpoints, zinfo v2; only where the codec needs windows
        toc.bin             the tar's table of contents (erofs/toc.py); only where the layer is a tar
        leaves.bin          sha256 of each 4096 decoded bytes, the last padded with zeros: leaves of a hash tree
        index.json          facts about the layer, and the digests of the files above

Files are never written again once they have their name. A pass writes them under an attempt of its own, so that a
late writer overwrites nothing and a late deletion never meets a newer copy. The catalog names the attempt that counts
and the digest of its ``index.json``; that holds the digest of ``spans.bin``, which holds those of every span.

Absent, damaged and unavailable are three things. *Absent*: nothing has this name. *Damaged*: the bytes are not those
that were written. *Unavailable*: the disk, a limit or a permission kept them from being read just now; nothing is
concluded from that.
"""

from __future__ import annotations

import hashlib
import os
from errno import ESPIPE
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.errors import IndexAbsent, IndexDamaged, NewerFormat, StorageError
from gateway.gzran import zinfo
from gateway.layers.codec import Codec, codec_of
from gateway.layers.key import FORMAT, LayerKey
from gateway.layers.table import SpanTable

FACTS = "index.json"
SPANS = "spans.bin"
CHECKPOINTS = "checkpoints.zinfo"
TOC = "toc.bin"
LEAVES = "leaves.bin"


class FileFacts(BaseModel):
    """A file of the index."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class IndexFacts(BaseModel):
    """What the pass found out; ``index.json``."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    blob: str
    blob_size: int
    codec: str
    cut: str
    span_size: int
    size: int
    """Bytes after decoding."""
    sha256: str
    """Digest of the decoded bytes (the diff_id of a layer); empty where no pass has proven the index."""
    members: int = 0
    """Members of a gzip blob; 0 for other codecs."""
    zinfo: str | None = None
    """Digest of the supplied table that cut the spans, if one did."""
    contents_error: str | None = None
    """Why there is no table of contents: the bytes are no tar, or one of its entries is refused."""
    files: dict[str, FileFacts]


class IndexRow(BaseModel):
    """What the catalog holds of an index: which attempt counts, and what proves it."""

    model_config = ConfigDict(frozen=True)

    attempt: str
    sha256: str
    """Of ``index.json``."""
    bytes: int


class WindowSource(Protocol):
    """Where the windows of an index are read."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the checkpoints file; blocking. Raises ``IndexAbsent``, ``IndexDamaged`` or ``StorageError``."""
        ...


class LayerIndex:
    """An index that is open: facts and span table in memory, windows read one by one when they are needed.

    It holds no descriptor and no mapping, so that thousands may be open; a truncated or failing file is an error of
    the read that meets it and of nothing else. Immutable, and usable from any thread.
    """

    def __init__(
        self, key: LayerKey, row: IndexRow, facts: IndexFacts, table: SpanTable, windows: WindowSource
    ) -> None:
        self.key = key
        self.row = row
        self.facts = facts
        self.table = table
        self.codec: Codec = codec_of(facts.codec)
        self._windows = windows

    def window(self, number: int) -> bytes:
        """The 32 KiB before span ``number``; empty where the codec needs none. Blocking."""
        if not self.codec.windowed:
            return b""
        start = zinfo.HEADER_BYTES + (number + 1) * zinfo.RECORD_BYTES - zinfo.WINDOW_BYTES
        return self._windows.read(start, zinfo.WINDOW_BYTES)

    def next_window(self, number: int) -> bytes | None:
        """The window that span ``number`` has to end with, where only that can tell; ``None`` otherwise. Blocking."""
        if number + 1 == self.table.count or self.table.span(number).proven:
            return None
        return self.window(number + 1)


def parse_index(
    key: LayerKey, row: IndexRow, facts: bytes, spans: bytes, windows: WindowSource
) -> LayerIndex:
    """An index from its two small files. Raises ``IndexDamaged``, or ``NewerFormat`` for one of a later version."""
    if hashlib.sha256(facts).hexdigest() != row.sha256:
        raise IndexDamaged(
            f"{FACTS} of layer {key.blob} does not have the digest that the catalog holds of it"
        )
    try:
        parsed = IndexFacts.model_validate_json(facts)
        if parsed.format > FORMAT:
            raise NewerFormat(
                f"the index of layer {key.blob} has format {parsed.format}, this version reads {FORMAT}"
            )
        if hashlib.sha256(spans).hexdigest() != parsed.files[SPANS].sha256:
            raise IndexDamaged(f"{SPANS} of layer {key.blob} does not have its digest")
        return LayerIndex(key, row, parsed, SpanTable(spans), windows)
    except (ValidationError, ValueError, KeyError) as error:
        raise IndexDamaged(f"the index of layer {key.blob} cannot be understood") from error


class FileWindows:
    """Windows in a local file, opened for each read: nothing is held between two."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        """As ``WindowSource``."""
        data = read_file(self._path, offset, length)
        if len(data) != length:
            raise IndexDamaged(f"{self._path} is shorter than it was written")
        return data


def read_file(path: Path, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a local file, telling absent, damaged and unavailable apart; blocking.

    Raises ``IndexAbsent`` where there is no such file, ``IndexDamaged`` where there is something else in its place, and
    ``StorageError`` for all else: no descriptor left, an I/O error, a permission.
    """
    try:
        # O_NONBLOCK: a FIFO in the place of a file must not hang the thread.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexAbsent(f"{path} is not there") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        if length is None:
            length = os.fstat(fd).st_size
        return os.pread(fd, length, offset) if length else b""
    except (IsADirectoryError, BlockingIOError) as error:
        raise IndexDamaged(f"{path} is not a file") from error
    except OSError as error:
        kind = IndexDamaged if error.errno == ESPIPE else StorageError
        raise kind(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
