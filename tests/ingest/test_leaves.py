"""Leaves of a hash tree equal hashlib over padded blocks, however the stream arrives."""

from __future__ import annotations

import hashlib
import itertools

from hypothesis import given
from hypothesis import strategies as st

from gateway.ingest.leaves import LEAF_BYTES, Leaves

SIZES = st.one_of(st.integers(0, 3 * LEAF_BYTES + 5), st.sampled_from([0, 1, 4095, 4096, 4097, 8192]))


@given(SIZES, st.lists(st.integers(0, 13_000), max_size=6), st.booleans())
def test_any_chunking_gives_the_leaves_of_the_padded_blocks(size, cuts, views):
    data = bytes(i * 7 % 251 for i in range(size))
    leaves = Leaves()
    bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, stop in itertools.pairwise(bounds):
        piece = data[start:stop]
        leaves.update(memoryview(piece) if views else piece)
    blocks = [data[at : at + LEAF_BYTES].ljust(LEAF_BYTES, b"\0") for at in range(0, size, LEAF_BYTES)]
    assert leaves.finish() == b"".join(hashlib.sha256(block).digest() for block in blocks)
