"""The contents of a layer: a tar's table of contents, written while its bytes come by."""

from __future__ import annotations

from pathlib import Path

from gateway.erofs.tarstream import TarWalker
from gateway.erofs.toc import TocWriter
from gateway.errors import InvalidLayer


class Walk:
    """Walks a tar and writes what it finds to ``path``.

    A layer that is no tar, or holds an entry that is refused, can still be served as bytes: the walk ends there, the file is
    removed, and ``finish`` says why.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._writer = TocWriter(self._file.write)
        self._walker = TarWalker(self._writer.add)
        self._error: str | None = None

    def feed(self, data: memoryview) -> None:
        """Take the next decoded bytes; they are valid during the call only."""
        if self._error is None:
            try:
                self._walker.feed(data)
            except InvalidLayer as error:
                self._fail(error)

    def finish(self) -> str | None:
        """Complete the file; returns why there is none."""
        if self._error is None:
            try:
                self._writer.finish(self._walker.finish())
                self._file.close()
            except InvalidLayer as error:
                self._fail(error)
        return self._error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _fail(self, error: InvalidLayer) -> None:
        self._error = error.detail
        self._file.close()
        self._path.unlink()
