"""EROFS on disk, little-endian: structures, constants and the superblock's checksum.

Source: the Linux kernel's documentation of EROFS (Documentation/filesystems/erofs.rst) and measurements of
what Linux 6.12 and 6.18 mount.
"""

from __future__ import annotations

import stat
import struct
from typing import Final

BLOCK_BITS: Final = 9
BLOCK: Final = 1 << BLOCK_BITS
"""Bytes per block of what is written here: tar payload is aligned to 512 bytes and no more."""

ALIGN_BYTES: Final = 4096
"""Metadata and each layer begin at a multiple of this in a device, and are padded with zeros to one.

Blocks are smaller, so a page of the kernel never mixes two layers, and direct reads of 4096 bytes meet one source.
"""

SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_SIZE: Final = 128
MAGIC: Final = 0xE0F5E1E2
COMPAT_CHECKSUM: Final = 1
COMPAT_MTIME: Final = 2
INCOMPAT_ZERO_PADDING: Final = 1
INCOMPAT_CHUNKED_FILE: Final = 4
INCOMPAT_DEVICE_TABLE: Final = 8

SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHB5xQ24x")
"""magic, checksum, compat, block bits, extension slots, root nid, inodes, epoch, fixed nsec, blocks, meta
block, xattr block, uuid, volume name, incompat, algorithms, extra devices, device table slot, directory block
bits, packed nid."""

DEVICE_SLOT: Final = struct.Struct("<64sIIHH52x")
"""tag, blocks low, uniaddr low, blocks high, uniaddr high."""

COMPACT_INODE: Final = struct.Struct("<HHHHIIIIHHI")
"""format, xattr count, mode, nlink, size, reserved, i_u, ino, uid, gid, reserved."""

EXTENDED_INODE: Final = struct.Struct("<HHHHQIIIIQII16x")
"""format, xattr count, mode, reserved, size, i_u, ino, uid, gid, mtime, mtime nsec, nlink."""

DIRENT: Final = struct.Struct("<QHBB")
"""nid, name offset in its block, file type, reserved."""

XATTR_HEADER: Final = struct.Struct("<IB7x")
XATTR_ENTRY: Final = struct.Struct("<BBH")

INODE_ALIGN: Final = 32
FLAT_PLAIN: Final = 0
FLAT_INLINE: Final = 2
CHUNK_BASED: Final = 4
NO_BLOCK: Final = 0xFFFFFFFF
"""Start block of an inode without a full block, and the address of a chunk that is a hole."""

CHUNK_BITS_MASK: Final = 0x1F
CHUNK_INDEXES: Final = 0x20
CHUNK_INDEX: Final = struct.Struct("<HHI")
"""advise, device number (0 is the device itself), block."""

NAME_MAX: Final = 255
TARGET_MAX: Final = 4095

FILE_TYPE: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

XATTR_PREFIXES: Final = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
"""Linux' namespaces and their index. The two ACL names are whole names: nothing follows them."""


def aligned(size: int) -> int:
    """``size`` in bytes, rounded up to a multiple of ``ALIGN_BYTES``."""
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


def encode_rdev(major: int, minor: int) -> int:
    """The kernel's 32-bit device number: 12 bits of major, 20 of minor."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def decode_rdev(rdev: int) -> tuple[int, int]:
    """Major and minor of a 32-bit device number."""
    return rdev >> 8 & 0xFFF, (rdev & 0xFF) | (rdev >> 12 & ~0xFF)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C as EROFS keeps it: initial value all ones, no final inversion."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value


def superblock_checksum(image: bytes | bytearray | memoryview, block_size: int) -> int:
    """The checksum that belongs into ``image``'s superblock: over the rest of its block, itself as zero."""
    end = max(block_size, SUPERBLOCK_OFFSET + BLOCK)
    covered = bytearray(image[SUPERBLOCK_OFFSET:end])
    covered[4:8] = bytes(4)
    return crc32c(covered)
