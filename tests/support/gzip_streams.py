"""gzip streams of every kind that encoders in the field write, small enough for many examples."""

from __future__ import annotations

import functools
import random
import struct
import zlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: A busy machine is no failure.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FHCRC, FEXTRA, FNAME, FCOMMENT = 2, 4, 8, 16


def gzip_header(*, extra=None, name=None, comment=None, header_crc=False):
    flags = FHCRC * header_crc | FEXTRA * (extra is not None)
    flags |= FNAME * (name is not None) | FCOMMENT * (comment is not None)
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\xff"
    if extra is not None:
        head += struct.pack("<H", len(extra)) + extra
    for text in (name, comment):
        if text is not None:
            head += text + b"\0"
    if header_crc:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    return head


def trailer(data):
    return struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def deflate(data, *, level=6, strategy=zlib.Z_DEFAULT_STRATEGY, mem_level=8, flush=None, flush_every=1000):
    """Raw deflate; with ``flush`` (a zlib flush mode) flushed behind every ``flush_every`` bytes."""
    encoder = zlib.compressobj(level, zlib.DEFLATED, -15, mem_level, strategy)
    if flush is None:
        return encoder.compress(data) + encoder.flush()
    parts = []
    for start in range(0, max(len(data), 1), flush_every):
        parts += [encoder.compress(data[start : start + flush_every]), encoder.flush(flush)]
    return b"".join(parts) + encoder.flush()


def member(data, *, header=None, **how):
    return (gzip_header() if header is None else header) + deflate(data, **how) + trailer(data)


def members(data, size, **how):
    """One member for every ``size`` bytes, as bgzip and estargz cut."""
    return b"".join(member(data[i : i + size], **how) for i in range(0, len(data), size))


@functools.cache
def text(length, seed=0):
    """Half compressible bytes, the same for the same seed."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(2, 9)) for _ in range(200)]
    out = bytearray()
    while len(out) < length:
        out += source.choice(words) if source.random() < 0.9 else source.randbytes(source.randint(1, 40))
    return bytes(out[:length])


class BitWriter:
    """Deflate by hand, for streams that no encoder writes."""

    def __init__(self):
        self._bits, self._length = 0, 0

    def put(self, value, width):
        self._bits |= value << self._length
        self._length += width
        return self

    def align(self):
        """Zeros up to the next byte."""
        self._length = -(-self._length // 8) * 8
        return self

    def empty_block(self, *, final=False):
        """An empty block with fixed codes: ten bits."""
        return self.put(int(final), 1).put(1, 2).put(0, 7)

    def to_bytes(self):
        return self._bits.to_bytes(-(-self._length // 8), "little")


_FLUSHES = (None, None, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_BLOCK)
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
_names = st.none() | st.binary(max_size=8).map(lambda raw: raw.replace(b"\0", b"x"))
headers = st.builds(
    gzip_header,
    extra=st.none() | st.binary(max_size=20),
    name=_names,
    comment=_names,
    header_crc=st.booleans(),
)


@st.composite
def gzip_blobs(draw, max_bytes=12_000):
    """(blob, its uncompressed bytes): one to four members, some empty, perhaps zero padding behind."""
    blob, plain = b"", b""
    for _ in range(draw(st.integers(1, 4))):
        data = text(draw(st.sampled_from((0, 1, 700, max_bytes // 4, max_bytes))), draw(st.integers(0, 50)))
        if draw(st.booleans()):
            data = bytes(len(data) // 3) + data[len(data) // 3 :]
        blob += member(
            data,
            header=draw(headers),
            level=draw(st.sampled_from((0, 1, 6, 9))),
            strategy=draw(st.sampled_from(_STRATEGIES)),
            mem_level=draw(st.sampled_from((1, 2, 8))),
            flush=draw(st.sampled_from(_FLUSHES)),
            flush_every=draw(st.sampled_from((100, 1000, 5000))),
        )
        plain += data
    return blob + bytes(draw(st.sampled_from((0, 0, 1, 512)))), plain
