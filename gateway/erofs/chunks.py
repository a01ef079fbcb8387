"""Sparse files as chunk-based inodes: equal chunks, each somewhere in the device or a hole.

The table has four bytes a chunk, so chunks are as large as the file's pieces allow: every piece begins at a
chunk's begin, and ends at one's end or at the file's.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.erofs.ondisk import BLOCK, BLOCK_BITS, NO_BLOCK

CHUNK_BITS_MAX: Final = 21
"""Chunks of at most 1 GiB."""

Pieces = tuple[tuple[int, int], ...]


def chunk_bits(size: int, pieces: Pieces) -> int:
    """How many times a chunk doubles a block, for a file of ``size`` bytes with data in ``pieces``.

    ``pieces`` are (offset, length) in bytes, aligned to blocks but for the file's end.
    """
    edges = BLOCK << CHUNK_BITS_MAX
    for offset, length in pieces:
        if length:
            edges |= offset
            edges |= 0 if offset + length == size else offset + length
    return (edges & -edges).bit_length() - 1 - BLOCK_BITS


def chunk_table_size(size: int, pieces: Pieces) -> int:
    """Bytes of the table."""
    return -(-size // (BLOCK << chunk_bits(size, pieces))) * 4


def chunk_table(size: int, pieces: Pieces, start: int) -> bytes:
    """The table for pieces that lie back to back in the device from block ``start``."""
    chunk_blocks = 1 << chunk_bits(size, pieces)
    table = [NO_BLOCK] * (chunk_table_size(size, pieces) // 4)
    for offset, length in pieces:
        first = offset // BLOCK // chunk_blocks
        for chunk in range(-(-length // (BLOCK * chunk_blocks))):
            table[first + chunk] = start + chunk * chunk_blocks
        start += -(-length // BLOCK)
    return struct.pack(f"<{len(table)}I", *table)
