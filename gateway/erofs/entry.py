"""One member of a layer's tar, as everything after the tar parser sees it."""

from __future__ import annotations

import stat
from typing import Final, NamedTuple

HARD_LINK: Final = 0
"""The ``kind`` of a hard link: it has no type of its own."""

KINDS: Final = frozenset(
    (HARD_LINK, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
)

PATH_MAX: Final = 4095
"""Bytes of a path or a link's target; Linux takes no longer ones."""

MAX_BYTES: Final = 1 << 41
"""2 TiB: what 32-bit numbers of 512-byte blocks reach. No member and no device is larger."""


class Entry(NamedTuple):
    """A tar member with all extensions applied.

    ``path`` and ``target`` are the tar's own bytes, not normalised. ``kind`` is one of ``stat.S_IF*`` or
    ``HARD_LINK``; ``permissions`` the lower twelve bits of the mode. ``offset`` is where the payload starts
    in the decompressed tar (a multiple of 512) and ``size`` its bytes; both are 0 unless the member is a
    regular file. ``xattrs`` are (full name, value) pairs, sorted by name.

    ``pieces`` is empty unless the file is sparse: then (offset in the file, length) of what the payload holds
    back to back, everything else being holes, and ``size`` counts them too.
    """

    path: bytes
    kind: int
    permissions: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nanoseconds: int = 0
    size: int = 0
    offset: int = 0
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    pieces: tuple[tuple[int, int], ...] = ()


def shown(name: bytes, limit: int = 200) -> str:
    """A member's name for an error's text: printable, quoted and capped at ``limit`` bytes."""
    cut = name[:limit]
    text = repr(cut.decode("utf-8", "backslashreplace"))
    return text if len(name) <= limit else f"{text} ({len(name)} bytes)"
