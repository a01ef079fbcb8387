"""Gzip streams in the flavours that layers come in (RFC 1952, RFC 1951)."""

import os
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterable

from tests.support.processes import require_program

_FHCRC, _FEXTRA, _FNAME, _FCOMMENT = 0x02, 0x04, 0x08, 0x10


def member(
    data: bytes,
    *,
    level: int = 6,
    name: bytes | None = None,
    extra: bytes | None = None,
    comment: bytes | None = None,
    header_crc: bool = False,
    flush_every: int | None = None,
) -> bytes:
    """One gzip member by zlib. `extra` is the whole extra field; `flush_every` puts a full flush after so many bytes."""
    flags = (_FHCRC if header_crc else 0) | (_FEXTRA if extra is not None else 0)
    flags |= (_FNAME if name is not None else 0) | (_FCOMMENT if comment is not None else 0)
    header = struct.pack("<4BI2B", 0x1F, 0x8B, 8, flags, 0, 0, 255)
    if extra is not None:
        header += struct.pack("<H", len(extra)) + extra
    header += b"".join(text + b"\0" for text in (name, comment) if text is not None)
    if header_crc:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = b""
    for piece in pieces(data, flush_every or max(len(data), 1)):
        body += deflate.compress(piece)
        if flush_every:
            body += deflate.flush(zlib.Z_FULL_FLUSH)
    body += deflate.flush()
    return header + body + struct.pack("<2I", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def stored(data: bytes) -> bytes:
    """One member of stored blocks: deflate without any compression."""
    return member(data, level=0)


def members(data: bytes, size: int, *, level: int = 6) -> bytes:
    """One member for every `size` bytes, as parallel and block-wise compressors write them."""
    return b"".join(member(piece, level=level) for piece in pieces(data, size)) or member(b"")


def pieces(data: bytes, size: int) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def by_program(data: bytes, program: str, *arguments: str, package: str | None = None) -> bytes:
    """What a program of this machine makes of the data on its standard input."""
    argv = [require_program(program, package=package), *arguments, "-c"]
    # gzip's own options may come from the environment, too.
    environment = {name: value for name, value in os.environ.items() if name not in {"GZIP", "PIGZ"}}
    return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True, env=environment).stdout


# An 18-byte extra field, which with its length makes the header 30 bytes: one subfield of 14 bytes.
EXTRA_OF_18_BYTES = b"BG" + struct.pack("<H", 14) + bytes(range(14))

# Every flavour that needs nothing but zlib.
PURE: dict[str, Callable[[bytes], bytes]] = {
    "zlib -6": member,
    "zlib -1": lambda data: member(data, level=1),
    "stored blocks": stored,
    "members of 64 KiB": lambda data: members(data, 64 << 10),
    "members of 1 MiB": lambda data: members(data, 1 << 20),
    "full flush every 128 KiB": lambda data: member(data, flush_every=128 << 10),
    "empty member first": lambda data: member(b"") + member(data),
    "empty member last": lambda data: member(data) + member(b""),
    "header with a name": lambda data: member(data, name=b"layer.tar"),
    "header of 30 bytes": lambda data: member(data, extra=EXTRA_OF_18_BYTES),
    "header with everything": lambda data: member(
        data, name=b"layer.tar", comment=b"a layer", extra=EXTRA_OF_18_BYTES, header_crc=True
    ),
    "trailing zeros": lambda data: member(data) + bytes(1000),
}

# Flavours of the programs that people use.
PROGRAMS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -6": lambda data: by_program(data, "gzip", "-6"),
    "gzip -9": lambda data: by_program(data, "gzip", "-9"),
    "pigz": lambda data: by_program(data, "pigz", "-p", "2"),
    "pigz -i": lambda data: by_program(data, "pigz", "-p", "2", "-i"),
    "igzip": lambda data: by_program(data, "igzip", package="isal"),
}

FLAVOURS = PURE | PROGRAMS
