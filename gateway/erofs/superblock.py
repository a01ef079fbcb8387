"""The superblock and device table of EROFS metadata that somebody hands in: read and checked.

The kernel of every node parses what passes here, so rules are stricter than the kernel's: what this project
does not place in a device (compression, fragments, packed inodes) is refused by its feature bit. ``validate``
looks at all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.erofs.ondisk import (
    BLOCK,
    COMPAT_CHECKSUM,
    DEVICE_SLOT,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    INCOMPAT_ZERO_PADDING,
    INODE_ALIGN,
    MAGIC,
    NO_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    superblock_checksum,
)
from gateway.errors import InvalidMetadata

_INCOMPAT: Final = INCOMPAT_ZERO_PADDING | INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE
_BLOCK_BITS: Final = range(9, 13)
_FIRST_BLOCKS: Final = 4096

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """One entry of the device table: ``blocks`` of the device lie at block ``uniaddr`` of the whole."""

    tag: bytes
    blocks: int
    uniaddr: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a device needs to know of its metadata. ``blocks`` are the image's own, without ``devices``'."""

    block_bits: int
    blocks: int
    uuid: bytes
    root_nid: int
    inodes: int
    epoch: int
    epoch_nanoseconds: int
    meta_block: int
    xattr_block: int
    feature_compat: int
    feature_incompat: int
    devices: tuple[DeviceSlot, ...]

    @property
    def block_size(self) -> int:
        """Bytes per block."""
        return 1 << self.block_bits

    @property
    def total_blocks(self) -> int:
        """Blocks of the whole device: the end of whatever reaches farthest."""
        return max(self.blocks, *(slot.uniaddr + slot.blocks for slot in self.devices), 0)

    @property
    def device_size(self) -> int:
        """Bytes of the whole device."""
        return self.total_blocks * self.block_size

    def inode_offset(self, nid: int) -> int:
        """Where the inode ``nid`` lies, in bytes."""
        return self.meta_block * self.block_size + nid * INODE_ALIGN


def head_size(start: Buffer) -> int:
    """How many bytes from the image's start ``parse`` needs, told by its first 1,152 bytes: 17 MB at most."""
    if len(start) < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
        raise InvalidMetadata(f"EROFS superblock: {len(start)} bytes cannot hold one")
    fields = SUPERBLOCK.unpack_from(start, SUPERBLOCK_OFFSET)
    device_count: int = fields[-4]
    table_slot: int = fields[-3]
    return max(_FIRST_BLOCKS, (table_slot + device_count) * DEVICE_SLOT.size)


def parse(buffer: Buffer, device_size: int | None = None) -> Superblock:
    """Read the superblock and device table at the start of ``buffer``.

    ``buffer`` is the metadata, or as much of it as holds the device table. With ``device_size`` (bytes) every
    region must end inside of it. ``InvalidMetadata`` names the rule that is broken.
    """
    if len(buffer) < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
        raise InvalidMetadata(f"EROFS superblock: {len(buffer)} bytes cannot hold one")
    (
        magic,
        checksum,
        compat,
        block_bits,
        _extensions,
        root_nid,
        inodes,
        epoch,
        epoch_nanoseconds,
        blocks,
        meta_block,
        xattr_block,
        uuid,
        _volume,
        incompat,
        algorithms,
        device_count,
        table_slot,
        directory_bits,
        _packed_nid,
    ) = SUPERBLOCK.unpack_from(buffer, SUPERBLOCK_OFFSET)
    if magic != MAGIC:
        raise InvalidMetadata(f"EROFS superblock: magic is {magic:#010x}, not {MAGIC:#010x}")
    if block_bits not in _BLOCK_BITS:
        raise InvalidMetadata(f"EROFS superblock: blocks of 2^{block_bits} bytes (512 to 4096 are read)")
    if incompat & ~_INCOMPAT:
        raise InvalidMetadata(
            f"EROFS superblock: incompatible features {incompat & ~_INCOMPAT:#x} are not known here"
        )
    if algorithms or directory_bits:
        raise InvalidMetadata("EROFS superblock: compression or multi-block directories are not known here")
    if compat & COMPAT_CHECKSUM:
        _verify_checksum(buffer, 1 << block_bits, checksum)
    if epoch_nanoseconds >= 1_000_000_000:  # noqa: PLR2004 - nanoseconds of a second
        raise InvalidMetadata(f"EROFS superblock: {epoch_nanoseconds} nanoseconds in a second")
    if device_count and not incompat & INCOMPAT_DEVICE_TABLE:
        raise InvalidMetadata("EROFS superblock: extra devices without the device table's feature bit")
    superblock = Superblock(
        block_bits,
        blocks,
        uuid,
        root_nid,
        inodes,
        epoch,
        epoch_nanoseconds,
        meta_block,
        xattr_block,
        compat,
        incompat,
        _device_table(buffer, device_count, table_slot),
    )
    _check_regions(superblock, device_size)
    return superblock


def _verify_checksum(buffer: Buffer, block_size: int, expected: int) -> None:
    if len(buffer) < max(block_size, SUPERBLOCK_OFFSET + BLOCK):
        raise InvalidMetadata("EROFS superblock: the metadata ends inside of its block")
    actual = superblock_checksum(buffer, block_size)
    if actual != expected:
        raise InvalidMetadata(
            f"EROFS superblock: checksum is {expected:#010x}, its bytes give {actual:#010x}"
        )


def _device_table(buffer: Buffer, count: int, table_slot: int) -> tuple[DeviceSlot, ...]:
    start = table_slot * DEVICE_SLOT.size
    if count and start < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE:
        raise InvalidMetadata(f"EROFS device table: at byte {start}, inside of the superblock")
    if start + count * DEVICE_SLOT.size > len(buffer):
        raise InvalidMetadata(
            f"EROFS device table: {count} slots at byte {start} reach past the metadata's end"
        )
    slots = []
    for index in range(count):
        slot = DEVICE_SLOT.unpack_from(buffer, start + index * DEVICE_SLOT.size)
        tag, blocks, uniaddr, blocks_high, uniaddr_high = slot
        slots.append(DeviceSlot(tag.rstrip(b"\0"), blocks | blocks_high << 32, uniaddr | uniaddr_high << 32))
    return tuple(slots)


def _check_regions(superblock: Superblock, device_size: int | None) -> None:
    """Metadata first, then the devices in any order: nothing overlaps, nothing reaches past the end."""
    block_size = superblock.block_size
    end = superblock.blocks
    for index, slot in sorted(enumerate(superblock.devices), key=lambda item: item[1].uniaddr):
        where = f"EROFS device table: slot {index} (blocks {slot.uniaddr}+{slot.blocks})"
        if slot.uniaddr in (0, NO_BLOCK):
            raise InvalidMetadata(f"{where} has no place in the device")
        if not slot.blocks:
            raise InvalidMetadata(f"{where} is empty")
        if slot.uniaddr < end:
            raise InvalidMetadata(f"{where} overlaps what lies before block {end}")
        end = slot.uniaddr + slot.blocks
    if device_size is not None and end * block_size > device_size:
        raise InvalidMetadata(
            f"EROFS superblock: {end} blocks of {block_size} in a device of {device_size} bytes"
        )
    if superblock.inode_offset(superblock.root_nid) + INODE_ALIGN > (device_size or end * block_size):
        raise InvalidMetadata(
            f"EROFS superblock: root inode {superblock.root_nid} lies outside of the device"
        )
