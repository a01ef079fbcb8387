"""Leaves of a hash tree: sha256 of each 4096 bytes of a stream, the last block padded with zeros (dm-verity, no salt)."""

from __future__ import annotations

from hashlib import sha256

LEAF_BYTES = 4096


class Leaves:
    """Takes a stream in pieces of any size."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._rest = bytearray()

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        if self._rest:
            room = LEAF_BYTES - len(self._rest)
            self._rest += view[:room]
            view = view[room:]
            if len(self._rest) < LEAF_BYTES:
                return
            self._digests += sha256(self._rest).digest()
            self._rest.clear()
        whole = len(view) - len(view) % LEAF_BYTES
        self._digests += b"".join(
            [sha256(view[at : at + LEAF_BYTES]).digest() for at in range(0, whole, LEAF_BYTES)]
        )
        self._rest += view[whole:]

    def finish(self) -> bytes:
        """All leaves in order, 32 bytes each."""
        if self._rest:
            self._digests += sha256(self._rest.ljust(LEAF_BYTES, b"\0")).digest()
            self._rest.clear()
        return bytes(self._digests)
