"""The part of zlib's C interface that Python's ``zlib`` module leaves out: ``Z_BLOCK`` and ``data_type``."""

from __future__ import annotations

import ctypes
import functools
import zlib

Z_NO_FLUSH = 0
Z_BLOCK = 5

Z_OK = 0
Z_STREAM_END = 1
Z_BUF_ERROR = -5

#: ``wbits`` for gzip members: libz then checks each header, CRC-32 and ISIZE itself.
GZIP_WBITS = 31

#: Bits of ``data_type`` after ``inflate`` (zlib.h): how many bits of the last byte are unused;
#: in the last block of a member; stopped at the end of a block or of a header.
UNUSED_BITS = 7
LAST_BLOCK = 64
BLOCK_END = 128


class ZStream(ctypes.Structure):
    """``z_stream`` of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


@functools.cache
def load() -> ctypes.CDLL:
    """The C library: the system's ``libz.so.1``, or the one that Python's ``zlib`` is built with.

    Calls into it release the GIL. Raises ``ImportError`` when there is neither.
    """
    for name in ("libz.so.1", getattr(zlib, "__file__", None)):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
            _declare(library)
        except (OSError, AttributeError):
            continue
        return library
    raise ImportError(
        "the zlib C library is missing: install libz.so.1 "
        "(Debian, Ubuntu: zlib1g; Fedora: zlib-ng-compat; Alpine: zlib)"
    )


def _declare(library: ctypes.CDLL) -> None:
    pointer = ctypes.POINTER(ZStream)
    library.zlibVersion.restype = ctypes.c_char_p
    library.inflateInit2_.argtypes = [pointer, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.inflate.argtypes = [pointer, ctypes.c_int]
    library.inflateReset.argtypes = [pointer]
    library.inflateEnd.argtypes = [pointer]
