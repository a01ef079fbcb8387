"""gzip and deflate decoded bit by bit in Python, after RFC 1951 and 1952 alone: slow, and no zlib in it.

It knows where every block starts, which is what checkpoints are judged by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.gzran.zinfo import WINDOW_BYTES, Checkpoint

_LENGTH_BASE = (
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    13,
    15,
    17,
    19,
    23,
    27,
    31,
    35,
    43,
    51,
    59,
    67,
    83,
    99,
    115,
    131,
    163,
    195,
    227,
    258,
)
_LENGTH_EXTRA = (0,) * 8 + (1,) * 4 + (2,) * 4 + (3,) * 4 + (4,) * 4 + (5,) * 4 + (0,)
_DISTANCE_BASE = (
    1,
    2,
    3,
    4,
    5,
    7,
    9,
    13,
    17,
    25,
    33,
    49,
    65,
    97,
    129,
    193,
    257,
    385,
    513,
    769,
    1025,
    1537,
    2049,
    3073,
    4097,
    6145,
    8193,
    12289,
    16385,
    24577,
)
_DISTANCE_EXTRA = (0, 0, *(n // 2 for n in range(28)))
_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)


@dataclass
class Decoded:
    output: bytearray = field(default_factory=bytearray)
    starts: list[Checkpoint] = field(default_factory=list)  # where a deflate block starts, in order
    member_starts: list[Checkpoint] = field(default_factory=list)

    def placed(self, span_size):
        """The checkpoints that zran's rule chooses."""
        chosen = [self.starts[0]]
        for start in self.starts:
            if start.out_offset - chosen[-1].out_offset > span_size:
                chosen.append(start)
        return chosen

    def window(self, out_offset):
        before = bytes(self.output[max(0, out_offset - WINDOW_BYTES) : out_offset])
        return before.rjust(WINDOW_BYTES, b"\0")


class _Bits:
    def __init__(self, blob, byte):
        self._blob, self.position = blob, byte * 8

    def one(self):
        bit = self._blob[self.position >> 3] >> (self.position & 7) & 1
        self.position += 1
        return bit

    def take(self, count):
        return sum(self.one() << i for i in range(count))

    def symbol(self, codes):
        code, length = 0, 0
        while (length, code) not in codes:
            code, length = code << 1 | self.one(), length + 1
        return codes[length, code]

    def align(self):
        self.position = (self.position + 7) & ~7


def _codes(lengths):
    """Canonical Huffman codes (RFC 1951, 3.2.2) as {(length, code): symbol}."""
    codes, code = {}, 0
    for length in range(1, 16):
        for symbol, wanted in enumerate(lengths):
            if wanted == length:
                codes[length, code] = symbol
                code += 1
        code <<= 1
    return codes


_FIXED = _codes([8] * 144 + [9] * 112 + [7] * 24 + [8] * 8), _codes([5] * 30)


def _dynamic(bits):
    literals, distances, order = bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4
    lengths = [0] * 19
    for symbol in _LENGTH_ORDER[:order]:
        lengths[symbol] = bits.take(3)
    codes, lengths = _codes(lengths), []
    while len(lengths) < literals + distances:
        symbol = bits.symbol(codes)
        if symbol < 16:
            lengths.append(symbol)
        elif symbol == 16:
            lengths += [lengths[-1]] * (3 + bits.take(2))
        else:
            lengths += [0] * (3 + bits.take(3) if symbol == 17 else 11 + bits.take(7))
    return _codes(lengths[:literals]), _codes(lengths[literals:])


def _block(bits, output, kind):
    if kind == 0:
        bits.align()
        length = bits.take(16)
        assert bits.take(16) == length ^ 0xFFFF
        output += bytes(bits.take(8) for _ in range(length))
        return
    literal_codes, distance_codes = _FIXED if kind == 1 else _dynamic(bits)
    while (symbol := bits.symbol(literal_codes)) != 256:
        if symbol < 256:
            output.append(symbol)
            continue
        length = _LENGTH_BASE[symbol - 257] + bits.take(_LENGTH_EXTRA[symbol - 257])
        symbol = bits.symbol(distance_codes)
        distance = _DISTANCE_BASE[symbol] + bits.take(_DISTANCE_EXTRA[symbol])
        for _ in range(length):
            output.append(output[-distance])


def _header_end(blob, position):
    flags, end = blob[position + 3], position + 10
    if flags & 4:
        end += 2 + int.from_bytes(blob[end : end + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            end = blob.index(0, end) + 1
    return end + (2 if flags & 2 else 0)


def decode(blob):
    decoded, position = Decoded(), 0
    while position < len(blob) and blob[position]:
        bits = _Bits(blob, _header_end(blob, position))
        decoded.member_starts.append(Checkpoint(bits.position // 8, len(decoded.output), 0))
        final = 0
        while not final:
            decoded.starts.append(Checkpoint(-(-bits.position // 8), len(decoded.output), -bits.position % 8))
            final, kind = bits.one(), bits.take(2)
            _block(bits, decoded.output, kind)
        bits.align()
        position = bits.position // 8 + 8
    return decoded
