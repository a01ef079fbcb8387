"""A push parser for one layer's decompressed tar: chunks of any size in, members with payload offsets out.

Theory of operation. The walker is always in one of four states: *header* (the next 512 bytes are a header),
*record* (collecting the payload of a header that describes the next one: GNU long names, PAX; or a sparse
map), *skip* (payload and padding, which are counted and never looked at), *ended* (two zero blocks were seen;
whatever follows is padding). Memory is bounded by one header, one record of at most 1 MiB per kind, and the
global PAX header.

Read: v7, ustar, GNU (long names, base-256), PAX (path, linkpath, size, uid, gid, mtime, SCHILY.xattr.*,
global headers), sparse files whose holes are aligned. Refused by name: other sparse files, multi-volume and
unknown types, and whatever would have to be guessed at.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from gateway.erofs import tarheader, tarmember, tarsparse
from gateway.erofs.entry import Entry, shown
from gateway.erofs.tarheader import HEADER
from gateway.erofs.tarsparse import SparseMap
from gateway.errors import InvalidLayer

RECORD_LIMIT: Final = 1 << 20
"""Bytes of one long name or PAX header."""

GLOBAL_LIMIT: Final = 1 << 16
"""Bytes of all global PAX records together: they are looked at again for each member."""

_RECORDS: Final = frozenset((b"L", b"K", b"x", b"g"))
_SPARSE_BLOCK: Final = b"sparse"
_ZERO_BLOCK: Final = bytes(HEADER)


class TarWalker:
    """Feed it a tar from its first byte; ``sink`` is called with each ``Entry`` once its header is complete.

    ``InvalidLayer`` names the member and the offset of its header. A walker that raised is of no further use.
    """

    def __init__(self, sink: Callable[[Entry], object]) -> None:
        self._sink = sink
        self._position = 0
        self._skip = 0
        self._payload = 0
        self._padding = 0
        self._partial = bytearray()
        self._record = bytearray()
        self._record_kind = b""
        self._record_size = 0
        self._record_left = 0
        self._sparse: SparseMap | None = None
        self._incomplete = Entry(b"", 0, 0)
        self._header_offset = 0
        self._zero_blocks = 0
        self._ended = False
        self._name = b""
        self._long_name: bytes | None = None
        self._long_target: bytes | None = None
        self._local: dict[bytes, bytes] | None = None
        self._global: dict[bytes, bytes] = {}

    @property
    def position(self) -> int:
        """Bytes fed so far; after ``finish``, the size of the tar."""
        return self._position

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the tar, any number of them. Nothing of ``data`` is kept."""
        view = memoryview(data)
        length = len(view)
        start = self._position
        at = 0
        while at < length and not self._ended:
            if self._skip:
                step = min(self._skip, length - at)
                self._skip -= step
                at += step
            elif self._record_left:
                step = min(self._record_left, length - at)
                self._record += view[at : at + step]
                self._record_left -= step
                at += step
                if not self._record_left:
                    self._end_record()
            elif not self._partial and length - at >= HEADER:
                self._header_offset = start + at
                at += HEADER
                self._header(bytes(view[at - HEADER : at]))
            else:
                if not self._partial:
                    self._header_offset = start + at
                step = min(HEADER - len(self._partial), length - at)
                self._partial += view[at : at + step]
                at += step
                if len(self._partial) == HEADER:
                    block = bytes(self._partial)
                    self._partial.clear()
                    self._header(block)
        self._position = start + length

    def finish(self) -> int:
        """Say that the tar ends here. Returns its size in bytes; raises when it ends inside of a member."""
        if self._ended:
            return self._position
        if self._partial:
            self._header_offset = self._position - len(self._partial)
            raise self._refuse("the archive ends inside of a header")
        # The padding after the last payload may be missing: the device pads each tar to 512 bytes anyway.
        if self._record_left or self._skip > self._padding:
            raise self._refuse("the archive ends inside of its payload")
        self._refuse_dangling()
        return self._position

    def _refuse_dangling(self) -> None:
        if self._long_name is not None or self._long_target is not None or self._local is not None:
            raise self._refuse("the archive ends after an extension header")

    def _refuse(self, reason: str) -> InvalidLayer:
        name = shown(self._name) if self._name else "the first member"
        return InvalidLayer(f"tar member {name} (header at byte {self._header_offset}): {reason}")

    def _header(self, block: bytes) -> None:
        if block == _ZERO_BLOCK:
            self._zero_blocks += 1
            if self._zero_blocks == 2:  # noqa: PLR2004 - POSIX: two zero blocks end an archive
                self._refuse_dangling()
                self._ended = True
            return
        if self._zero_blocks:
            raise self._refuse("a lone zero block stands before more members")
        previous = self._name
        try:
            tarheader.verify_checksum(block)
        except ValueError as error:
            after = f" after {shown(previous)}" if previous else ""
            raise InvalidLayer(f"no tar header at byte {self._header_offset}{after}: {error}") from error
        self._name = self._long_name if self._long_name is not None else tarheader.cut(block[:100])
        kind = block[156:157]
        if kind in _RECORDS:
            self._begin_record(kind, block)
        else:
            self._member(block)

    def _begin_record(self, kind: bytes, block: bytes) -> None:
        try:
            size = tarheader.number(block[124:136])
        except ValueError as error:
            raise self._refuse(str(error)) from error
        if not 0 < size <= RECORD_LIMIT:
            raise self._refuse(f"an extension header of {size} bytes (1 to {RECORD_LIMIT} are read)")
        self._record_kind = kind
        # Records are padded like payloads; the padding is collected too and cut off at the end.
        self._record_size = size
        self._record_left = size + -size % HEADER

    def _end_record(self) -> None:
        payload = bytes(self._record[: self._record_size])
        self._record.clear()
        kind = self._record_kind
        try:
            if kind == _SPARSE_BLOCK and self._sparse is not None:
                self._sparse_block(self._sparse, payload)
            elif kind == b"L":
                self._long_name = tarheader.cut(payload)
            elif kind == b"K":
                self._long_target = tarheader.cut(payload)
            elif kind == b"x":
                self._local = tarheader.pax_records(payload)
            else:
                self._global |= tarheader.pax_records(payload)
                if sum(len(key) + len(value) for key, value in self._global.items()) > GLOBAL_LIMIT:
                    raise ValueError(f"global headers of more than {GLOBAL_LIMIT} bytes")
        except ValueError as error:
            raise self._refuse(str(error)) from error
        if kind == _SPARSE_BLOCK and self._sparse is not None:
            self._continue_sparse(self._sparse)

    def _member(self, block: bytes) -> None:
        pax = self._global | self._local if self._local else self._global
        try:
            self._name = tarmember.member_path(block, self._long_name, pax)
            offset = self._header_offset + HEADER
            entry, payload = tarmember.decode(block, self._name, self._long_target, pax, offset)
            self._sparse = SparseMap(block, pax) if tarsparse.is_sparse(block, pax) else None
        except ValueError as error:
            raise self._refuse(str(error)) from error
        self._long_name = self._long_target = self._local = None
        self._payload = payload
        if self._sparse is None:
            self._emit(entry)
        else:
            self._incomplete = entry._replace(offset=offset)
            self._continue_sparse(self._sparse)

    def _continue_sparse(self, sparse: SparseMap) -> None:
        """Ask for the map's next block, or complete the member."""
        if sparse.wants_block:
            self._record_kind = _SPARSE_BLOCK
            self._record_size = self._record_left = HEADER
            return
        entry = self._incomplete
        try:
            if entry.kind != stat.S_IFREG:
                raise ValueError("a sparse file that is a directory")
            pieces = sparse.finish(self._payload)
        except ValueError as error:
            raise self._refuse(str(error)) from error
        self._emit(entry._replace(size=sparse.size, pieces=pieces))

    def _sparse_block(self, sparse: SparseMap, block: bytes) -> None:
        sparse.feed(block)
        self._incomplete = self._incomplete._replace(offset=self._incomplete.offset + HEADER)
        if sparse.in_payload:
            self._payload -= HEADER
            if self._payload < 0:
                raise ValueError("its sparse map is longer than its payload")

    def _emit(self, entry: Entry) -> None:
        self._padding = -self._payload % HEADER
        self._skip = self._payload + self._padding
        self._sink(entry)
