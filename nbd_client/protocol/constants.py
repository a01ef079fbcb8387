"""Numbers of the NBD protocol (proto.md, "Values"). All integers on the wire are big-endian."""

from __future__ import annotations

from enum import IntEnum, IntFlag

NBD_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698

MAX_STRING_BYTES = 4096  # "Conventions": no string is longer
MAX_PAYLOAD_BYTES = 32 << 20  # the most that clients may ask for when nothing else was negotiated
MIN_BLOCK_BYTES = 1
PREFERRED_BLOCK_BYTES = 4096


class HandshakeFlag(IntFlag):
    """Sent by the server in its greeting."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class ClientFlag(IntFlag):
    """Sent by the client in reply to the greeting."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


class Option(IntEnum):
    """Option types of the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """Reply types of the handshake; those with the top bit set are errors."""

    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = 2**31 + 1
    ERR_POLICY = 2**31 + 2
    ERR_INVALID = 2**31 + 3
    ERR_UNKNOWN = 2**31 + 6
    ERR_SHUTDOWN = 2**31 + 7
    ERR_TOO_BIG = 2**31 + 9


class InfoType(IntEnum):
    """What a client may want to know with GO or INFO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Request types of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class Errno(IntEnum):
    """Error numbers that the protocol allows in replies, whatever the machine calls them."""

    OK = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
