"""What one pass over a layer leaves behind: a folder with the span table, the checkpoints and the layer's facts.

::

    layers/<blob hex>/<index id>/
        index.json          facts about the layer, and the digest of spans.bin
        spans.bin           the span table (spans/table.py)
        checkpoints.zinfo   the gzip checkpoints, zinfo v2; only of gzip layers
        toc.bin             the tar's table of contents; only where the layer is a tar

A folder is written under another name and renamed when it is complete, so one that exists is whole. The span table
is checked against its digest when it is opened. A damaged window is caught by the digest of the span decoded with it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.errors import IndexDamaged, StorageError
from gateway.gzran import zinfo
from gateway.spans.table import SpanTable

FACTS = "index.json"
SPANS = "spans.bin"
CHECKPOINTS = "checkpoints.zinfo"
TOC = "toc.bin"
FORMAT = 1

Kind = Literal["gzip", "tar", "raw"]
"""How a blob is decoded and looked at: gzip of a tar, a plain tar, bytes of any kind."""


class LayerFacts(BaseModel):
    """What the pass found out; ``index.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    blob: str
    blob_size: int
    kind: Kind
    span_size: int
    size: int
    """Bytes after decoding."""
    sha256: str
    """Digest of the decoded bytes (the diff_id of a layer)."""
    members: int = 0
    """gzip members; 0 for other kinds."""
    spans_sha256: str
    zinfo: str | None = None
    """Digest of the supplied zinfo that cut the spans, if one did."""
    toc_sha256: str | None = None
    toc_error: str | None = None
    """Why there is no table of contents: the bytes are no tar, or one of its entries is refused."""


class LayerIndex:
    """An opened layer index: facts, span table, windows."""

    def __init__(self, folder: Path, facts: LayerFacts, table: SpanTable, windows: Windows | None) -> None:
        self.folder = folder
        self.facts = facts
        self.table = table
        self.windows = windows
        self.index_id = folder.name
        self._inode = folder.stat().st_ino

    @property
    def current(self) -> bool:
        """Whether the folder is still the one that was opened: it is replaced when it proves to be damaged."""
        try:
            return self.folder.stat().st_ino == self._inode
        except OSError:
            return False

    @classmethod
    def open(cls, folder: Path) -> LayerIndex | None:
        """Open a folder; ``None`` when there is none. Raises ``IndexDamaged``, ``StorageError`` when it cannot be read."""
        try:
            text = (folder / FACTS).read_bytes()
            records = (folder / SPANS).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror}") from error
        try:
            facts = LayerFacts.model_validate_json(text)
            if hashlib.sha256(records).hexdigest() != facts.spans_sha256:
                raise IndexDamaged(f"{folder / SPANS} does not have its digest")
            table = SpanTable(records)
        except (ValidationError, ValueError) as error:
            raise IndexDamaged(f"{folder} is damaged") from error
        windows = Windows(folder / CHECKPOINTS, table.count) if facts.kind == "gzip" else None
        return cls(folder, facts, table, windows)

    def close(self) -> None:
        """Unmap the checkpoints."""
        if self.windows is not None:
            self.windows.close()


class Windows:
    """The 32 KiB windows of a zinfo v2 file of ``count`` checkpoints, mapped, not loaded."""

    def __init__(self, path: Path, count: int) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_size != zinfo.HEADER_BYTES + count * zinfo.RECORD_BYTES:
                    raise IndexDamaged(f"{path} does not hold {count} checkpoints")
                self._map = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            raise IndexDamaged(f"{path} cannot be read") from error

    def window(self, index: int) -> bytes:
        """The window of checkpoint ``index``."""
        start = zinfo.HEADER_BYTES + index * zinfo.RECORD_BYTES + zinfo.RECORD_BYTES - zinfo.WINDOW_BYTES
        return self._map[start : start + zinfo.WINDOW_BYTES]

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def index_id(kind: Kind, span_size: int, supplied_zinfo: str | None = None) -> str:
    """Name of a way to cut a layer into spans; part of every cache key, so a change of method changes the name."""
    if supplied_zinfo is not None:
        return f"zinfo-{supplied_zinfo.rpartition(':')[2][:32]}-v{FORMAT}"
    return f"{kind}-{span_size}-v{FORMAT}"
