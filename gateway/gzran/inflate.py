"""Inflating one span from its checkpoint.

A checkpoint may stand inside of a byte. Shifting the bytes that follow is wrong: stored blocks are aligned
to bytes of the original stream. So the stream is completed in front: a constant prefix of *empty,
non-final deflate blocks* fills the bits of the first byte that belong to the block before. Two kinds do:

- an empty block with fixed Huffman codes is 10 bits long (RFC 1951, 3.2.6) and serves even numbers of bits;
- an empty block with dynamic codes (3.2.7) can be made 93 bits long and makes the number odd.

Then plain raw inflate goes on, with the window as its dictionary.
"""

from __future__ import annotations

from gateway.errors import CorruptStream
from gateway.gzran.backends import DEFAULT, ERRORS, Backend, Buffer, Inflater
from gateway.gzran.gzip import TRAILER_BYTES, gzip_header_length

_BYTE_BITS = 8
#: First piece of a further member; doubles while it lasts. What follows a member's end is copied by
#: the libraries, so that feeding all of it to each of a million tiny members would be quadratic.
_FIRST_PIECE_BYTES = 4096


def inflate_span(
    compressed: Buffer,
    bits: int,
    window: Buffer,
    length: int,
    *,
    first: bool = False,
    exact: bool = False,
    backend: Backend = DEFAULT,
) -> bytes:
    """Inflate exactly ``length`` bytes from a checkpoint.

    ``compressed`` begins at byte ``in - 1`` when ``bits`` is not 0, else at ``in``, and may reach beyond
    what is needed. ``window``: the 32 KiB before; not looked at when ``first``. A member may end inside:
    the next one's header is parsed and inflating goes on. With ``exact``, ``compressed`` is the span's
    own range and nothing more may come out of it. Raises ``CorruptStream`` when the stream is broken
    or yields fewer bytes, or (``exact``) more.
    """
    if not 0 <= bits < _BYTE_BITS or (bits and not len(compressed)):
        raise CorruptStream(
            f"no deflate stream begins {bits} bits before the end of a byte that is not there"
        )
    if length == 0:
        return b""
    output = _inflate(compressed, bits, b"" if first else window, length + 1 if exact else length, backend)
    if len(output) != length:
        relation = "more than" if len(output) > length else f"{len(output)} instead of"
        raise CorruptStream(f"the span's deflate stream yields {relation} {length} bytes")
    return output


def inflate_tail(
    compressed: Buffer,
    bits: int,
    window: Buffer,
    max_length: int,
    *,
    first: bool = False,
    backend: Backend = DEFAULT,
) -> bytes:
    """Inflate from a checkpoint to the end of the blob, whose length nobody knows yet.

    Arguments as in ``inflate_span``. Raises ``CorruptStream`` when more than ``max_length`` bytes come out.
    """
    output = _inflate(compressed, bits, b"" if first else window, max_length + 1, backend)
    if len(output) > max_length:
        raise CorruptStream(f"the last span's deflate stream yields more than {max_length} bytes")
    return output


def _inflate(compressed: Buffer, bits: int, window: Buffer, wanted: int, backend: Backend) -> bytes:
    inflater = backend(window)
    try:
        if bits:
            inflater.decompress(_prefix(bits, compressed[0]), wanted)
            compressed = memoryview(compressed)[1:]
        output = inflater.decompress(compressed, wanted)
        if inflater.eof and len(output) < wanted:
            output = _further_members(inflater, compressed, output, wanted, backend)
    except ERRORS as error:
        raise CorruptStream(f"the deflate stream of the span is corrupt: {error}") from error
    return output


def _further_members(
    inflater: Inflater, compressed: Buffer, output: bytes, wanted: int, backend: Backend
) -> bytes:
    view = memoryview(compressed)
    pieces, have = [output], len(output)
    position = len(view) - len(inflater.unused_data)
    while have < wanted:
        start = _next_member(view, position + TRAILER_BYTES)
        if start is None:
            break
        inflater = backend(b"")
        position, piece_bytes = start, _FIRST_PIECE_BYTES
        while not inflater.eof and position < len(view) and have < wanted:
            piece = view[position : position + piece_bytes]
            output = inflater.decompress(piece, wanted - have)
            position += len(piece)
            piece_bytes *= 2
            pieces.append(output)
            have += len(output)
        if not inflater.eof:
            break
        position -= len(inflater.unused_data)
    return b"".join(pieces)


def _next_member(view: memoryview, position: int) -> int | None:
    """Where the deflate stream of the member at ``position`` begins; ``None`` at the end or in padding."""
    if position >= len(view) or view[position] == 0:
        return None
    header = gzip_header_length(view[position:])
    return None if header is None else position + header


def _prefix(bits: int, byte: int) -> bytes:
    """Empty blocks up to where ``byte``'s top ``bits`` bits begin, and those bits."""
    own = _BYTE_BITS - bits
    blocks = bytearray(_PREFIXES[own])
    blocks[-1] |= byte >> own << own
    return bytes(blocks)


def _pack(fields: list[tuple[int, int]]) -> tuple[int, int]:
    """Pack (value, width) fields from the lowest bit up, as deflate does."""
    packed = length = 0
    for value, width in fields:
        packed |= value << length
        length += width
    return packed, length


#: BFINAL 0, BTYPE 01; end-of-block is seven zero bits.
_FIXED_BLOCK = [(0, 1), (1, 2), (0, 7)]
#: The order in which a dynamic block gives the lengths of its code-length code (RFC 1951, 3.2.7).
_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
_DYNAMIC_BLOCK = [
    *((0, 1), (2, 2)),  # BFINAL 0, BTYPE 10
    *((0, 5), (0, 5), (15, 4)),  # HLIT: 257 codes, HDIST: 1 code, HCLEN: all 19 lengths
    *((1 if symbol in (1, 18) else 0, 3) for symbol in _LENGTH_ORDER),  # symbol 1 is "0", 18 is "1"
    *((1, 1), (138 - 11, 7), (1, 1), (118 - 11, 7)),  # 138 + 118 = 256 zero lengths
    *((0, 1), (0, 1)),  # length 1 for end-of-block, length 1 for distance 0
    (0, 1),  # end-of-block
]


def _empty_blocks(own_bits: int) -> bytes:
    """Empty blocks whose bit length is ``own_bits`` modulo 8; the last byte is completed by the caller."""
    fields = list(_DYNAMIC_BLOCK) if own_bits % 2 else []
    while _pack(fields)[1] % _BYTE_BITS != own_bits:
        fields += _FIXED_BLOCK
    packed, length = _pack(fields)
    return packed.to_bytes(-(-length // _BYTE_BITS), "little")


_PREFIXES = (b"", *(_empty_blocks(own) for own in range(1, _BYTE_BITS)))
