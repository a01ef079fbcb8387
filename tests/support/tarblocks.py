"""Tar blocks by hand, for archives that no program writes."""

from __future__ import annotations

END = bytes(1024)


def header(
    name: bytes = b"name",
    *,
    flag: bytes = b"0",
    size: int = 0,
    magic: bytes = b"ustar\x0000",
    **fields: bytes,
) -> bytes:
    """One header block with a right checksum. ``fields``: offsets as ``at136=b"..."`` overwrite anything."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\x000000000\0"
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = flag
    block[257 : 257 + len(magic)] = magic
    for key, value in fields.items():
        at = int(key[2:])
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(keyword: bytes, value: bytes) -> bytes:
    """One PAX record."""
    body = b" " + keyword + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


def pax(*records: bytes, flag: bytes = b"x") -> bytes:
    """An extended header of ``records``."""
    payload = b"".join(records)
    return header(b"PaxHeaders/0", flag=flag, size=len(payload)) + padded(payload)
