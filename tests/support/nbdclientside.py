"""The client's side of the conversation: for reading a server back, and to test ours. PURE.

:class:`ClientHandshake` negotiates one export with GO; :class:`ReplyDecoder` takes replies apart.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from nbd_client.errors import ProtocolError
from nbd_client.protocol import constants as c

_GREETING = struct.Struct(">QQH")
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_MAX_REPLY_BYTES = 64 << 10  # no option reply of a sane server is longer


class ServerProtocolError(ProtocolError):
    """The server broke a rule."""


def encode_option(option: int, payload: bytes = b"") -> bytes:
    """One option of the handshake."""
    return _OPTION.pack(c.OPTION_MAGIC, option, len(payload)) + payload


def encode_info_request(name: str, wanted: tuple[int, ...] = ()) -> bytes:
    """The payload of INFO and GO."""
    raw = name.encode()
    return struct.pack(f">I{len(raw)}sH{len(wanted)}H", len(raw), raw, len(wanted), *wanted)


def encode_request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """One request of the transmission phase; the payload of a WRITE follows separately."""
    return _REQUEST.pack(c.REQUEST_MAGIC, flags, command, cookie, offset, length)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What the server granted. Sizes in bytes; ``leftover`` already belongs to the transmission phase."""

    size: int
    flags: int
    block_sizes: tuple[int, int, int] | None
    leftover: bytes


class ClientHandshake:
    """Feed bytes to :meth:`receive`, send what it returns, until :attr:`result` is set.

    Raises ``ServerProtocolError`` when the server refuses or breaks a rule.
    """

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._buffer = bytearray()
        self._greeted = False
        self._export: tuple[int, int] | None = None
        self._block_sizes: tuple[int, int, int] | None = None
        self.result: Negotiated | None = None

    def receive(self, data: bytes) -> bytes:
        """Take what arrived, return what to send."""
        self._buffer += data
        out = b""
        if not self._greeted:
            if len(self._buffer) < _GREETING.size:
                return b""
            out = self._answer_greeting()
        while self.result is None and self._one_reply():
            pass
        return out

    def _answer_greeting(self) -> bytes:
        magic, option_magic, flags = _GREETING.unpack_from(self._buffer)
        del self._buffer[: _GREETING.size]
        if magic != c.NBD_MAGIC or option_magic != c.OPTION_MAGIC:
            raise ServerProtocolError("the server does not speak newstyle NBD")
        if not flags & c.HandshakeFlag.FIXED_NEWSTYLE:
            raise ServerProtocolError("the server does not speak fixed newstyle NBD")
        self._greeted = True
        accepted = flags & int(c.ClientFlag.FIXED_NEWSTYLE | c.ClientFlag.NO_ZEROES)
        go = encode_option(c.Option.GO, encode_info_request(self._name, (c.InfoType.BLOCK_SIZE,)))
        return struct.pack(">I", accepted) + go

    def _one_reply(self) -> bool:
        if len(self._buffer) < _OPTION_REPLY.size:
            return False
        magic, option, kind, length = _OPTION_REPLY.unpack_from(self._buffer)
        if magic != c.OPTION_REPLY_MAGIC or option != c.Option.GO or length > _MAX_REPLY_BYTES:
            raise ServerProtocolError("the server's option reply makes no sense")
        end = _OPTION_REPLY.size + length
        if len(self._buffer) < end:
            return False
        payload = bytes(self._buffer[_OPTION_REPLY.size : end])
        del self._buffer[:end]
        if kind == c.OptionReply.INFO:
            self._learn(payload)
        elif kind == c.OptionReply.ACK:
            if self._export is None:
                raise ServerProtocolError("the server acknowledged without telling the export's size")
            leftover, self._buffer = bytes(self._buffer), bytearray()
            self.result = Negotiated(*self._export, self._block_sizes, leftover)
        else:
            text = payload.decode(errors="replace")
            raise ServerProtocolError(f"the server refused the export (reply {kind:#x}) {text}".rstrip())
        return True

    def _learn(self, payload: bytes) -> None:
        try:
            (kind,) = struct.unpack_from(">H", payload)
            if kind == c.InfoType.EXPORT:
                _, size, flags = struct.unpack(">HQH", payload)
                self._export = (size, flags)
            elif kind == c.InfoType.BLOCK_SIZE:
                _, *sizes = struct.unpack(">HIII", payload)
                self._block_sizes = (sizes[0], sizes[1], sizes[2])
        except struct.error as error:
            raise ServerProtocolError("the server sent malformed information") from error


class Reply(NamedTuple):
    """An answer to one request; ``payload`` is empty unless a READ succeeded."""

    cookie: int
    error: int
    payload: bytes


class ReplyDecoder:
    """Take simple replies apart. Every READ is announced with :meth:`expect` before its reply arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._expected: dict[int, int] = {}

    def expect(self, cookie: int, payload_bytes: int = 0) -> None:
        """Await a reply for ``cookie`` that carries ``payload_bytes`` on success."""
        self._expected[cookie] = payload_bytes

    @property
    def outstanding(self) -> int:
        """Requests that were not answered yet."""
        return len(self._expected)

    def receive(self, data: bytes | memoryview) -> list[Reply]:
        """Take what arrived; return the replies it completes. Raises ``ServerProtocolError``."""
        self._buffer += data
        replies: list[Reply] = []
        while len(self._buffer) >= _REPLY.size:
            magic, error, cookie = _REPLY.unpack_from(self._buffer)
            if magic != c.SIMPLE_REPLY_MAGIC:
                raise ServerProtocolError(f"bad reply magic {magic:#x}")
            if cookie not in self._expected:
                raise ServerProtocolError(f"a reply to a request that is not in flight: {cookie:#x}")
            end = _REPLY.size + (0 if error else self._expected[cookie])
            if len(self._buffer) < end:
                break
            replies.append(Reply(cookie, error, bytes(self._buffer[_REPLY.size : end])))
            del self._buffer[:end]
            del self._expected[cookie]
        return replies
