"""Extended attributes as they follow an inode on disk: a header, then entries padded to four bytes."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.erofs.ondisk import XATTR_ENTRY, XATTR_HEADER, XATTR_PREFIXES

Xattrs = tuple[tuple[bytes, bytes], ...]
"""(full name, value) pairs."""


def _items(xattrs: Xattrs) -> Iterator[tuple[int, bytes, bytes]]:
    """(prefix index, rest of the name, value).

    Names outside of Linux' namespaces (``com.apple.…`` is often seen) are left out: no unpacker on Linux can
    set them either.
    """
    for name, value in xattrs:
        for prefix, index in XATTR_PREFIXES:
            rest = name[len(prefix) :]
            if name.startswith(prefix) and bool(rest) == prefix.endswith(b"."):
                yield index, rest, value


def encoded_size(xattrs: Xattrs) -> int:
    """Bytes of ``encode(xattrs)``."""
    if not xattrs:
        return 0
    sizes = [XATTR_ENTRY.size + len(rest) + len(value) for _, rest, value in _items(xattrs)]
    return XATTR_HEADER.size + sum(size + -size % 4 for size in sizes) if sizes else 0


def encode(xattrs: Xattrs) -> bytes:
    """The bytes between an inode and its data; empty without attributes."""
    if not xattrs:
        return b""
    body = bytearray()
    for index, rest, value in _items(xattrs):
        body += XATTR_ENTRY.pack(len(rest), index, len(value))
        body += rest
        body += value
        body += bytes(-len(body) % 4)
    return XATTR_HEADER.pack(0, 0) + body if body else b""


def count_field(encoded: bytes) -> int:
    """The inode's count of them: units of four bytes after the header, plus one; 0 without attributes."""
    return (len(encoded) - XATTR_HEADER.size) // 4 + 1 if encoded else 0
