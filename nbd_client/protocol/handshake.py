"""The server's side of the fixed newstyle handshake (proto.md, "Newstyle negotiation"). PURE.

::

    GREETING sent ──client flags──▶ OPTIONS ──GO, EXPORT_NAME──▶ DONE (Enter)
                                      │ ▲
                                      └─┘ INFO, LIST, anything else: answered, stays
    anything that breaks a rule, ABORT, too many options ──▶ DONE (Close)

One option at a time is kept in memory, and none longer than ``MAX_OPTION_BYTES``: the payload of a longer
one is thrown away as it arrives and answered with ERR_TOO_BIG.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nbd_client.protocol import constants as c

MAX_OPTIONS = 64
MAX_OPTION_BYTES = c.MAX_STRING_BYTES + 256
MAX_SKIPPED_BYTES = 1 << 20

_GREETING = struct.Struct(">QQH")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">QH")
_KNOWN_CLIENT_FLAGS = int(c.ClientFlag.FIXED_NEWSTYLE | c.ClientFlag.NO_ZEROES)
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Export:
    """The one thing that is served. ``size`` in bytes; the empty name always means it as well."""

    size: int
    name: str = ""
    description: str = ""
    flags: int = int(
        c.TransmissionFlag.HAS_FLAGS
        | c.TransmissionFlag.READ_ONLY
        | c.TransmissionFlag.SEND_FLUSH
        | c.TransmissionFlag.CAN_MULTI_CONN
        | c.TransmissionFlag.SEND_CACHE
    )


class Send(NamedTuple):
    """Write these bytes to the peer."""

    data: bytes


class Enter(NamedTuple):
    """The handshake succeeded; ``leftover`` already belongs to the transmission phase."""

    leftover: bytes


class Close(NamedTuple):
    """Write what was asked for so far, then close. ``reason`` is for the log."""

    reason: str


Event = Send | Enter | Close


class Handshake:
    """Feed bytes to :meth:`receive` until it returns ``Enter`` or ``Close``; afterwards it takes nothing."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._buffer = bytearray()
        self._skip_bytes = 0  # payload of an oversized option that is still to come
        self._skipped_option = 0
        self._options = 0
        self._no_zeroes = False
        self._step: Callable[[], list[Event] | None] = self._client_flags
        self._done = False

    def greeting(self) -> bytes:
        """The first bytes of the connection."""
        flags = c.HandshakeFlag.FIXED_NEWSTYLE | c.HandshakeFlag.NO_ZEROES
        return _GREETING.pack(c.NBD_MAGIC, c.OPTION_MAGIC, flags)

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """Take what arrived; return what is to be done, in order."""
        events: list[Event] = []
        if self._done:
            return events
        self._buffer += data
        while not self._done:
            step = self._step()
            if step is None:
                break
            events += step
        return events

    def _take(self, count: int) -> bytes | None:
        if len(self._buffer) < count:
            return None
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _close(self, reason: str, *before: Event) -> list[Event]:
        self._done = True
        self._buffer.clear()
        return [*before, Close(reason)]

    def _client_flags(self) -> list[Event] | None:
        raw = self._take(_U32.size)
        if raw is None:
            return None
        (flags,) = _U32.unpack(raw)
        if flags & ~_KNOWN_CLIENT_FLAGS:
            # "the server MUST close the connection if it does not recognise a flag"
            return self._close(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & c.ClientFlag.NO_ZEROES)
        self._step = self._option
        return []

    def _option(self) -> list[Event] | None:
        if len(self._buffer) < _OPTION.size:
            return None
        magic, option, length = _OPTION.unpack_from(self._buffer)
        if magic != c.OPTION_MAGIC:
            return self._close(f"bad option magic {magic:#x}")
        if length > MAX_OPTION_BYTES:
            if length > MAX_SKIPPED_BYTES or option == c.Option.EXPORT_NAME:
                return self._close(f"option {option} of {length} bytes")
            del self._buffer[: _OPTION.size]
            self._skip_bytes, self._skipped_option = length, option
            self._step = self._skip
            return []
        if len(self._buffer) < _OPTION.size + length:
            return None
        payload = bytes(self._buffer[_OPTION.size : _OPTION.size + length])
        del self._buffer[: _OPTION.size + length]
        return self._counted(option, _ANSWERS.get(option, Handshake._unsupported)(self, option, payload))

    def _skip(self) -> list[Event] | None:
        dropped = min(self._skip_bytes, len(self._buffer))
        del self._buffer[:dropped]
        self._skip_bytes -= dropped
        if self._skip_bytes:
            return None
        self._step = self._option
        option = self._skipped_option
        return self._counted(option, [_reply(option, c.OptionReply.ERR_TOO_BIG, b"option too long")])

    def _counted(self, option: int, events: list[Event]) -> list[Event]:
        """Nobody needs this many options; a peer that sends more of them is not negotiating."""
        self._options += 1
        if self._done or self._options < MAX_OPTIONS:
            return events
        return self._close(f"more than {MAX_OPTIONS - 1} options, the last was {option}", *events)

    def _enter(self, *before: Event) -> list[Event]:
        self._done = True
        leftover = bytes(self._buffer)
        self._buffer.clear()
        return [*before, Enter(leftover)]

    def _serves(self, name: bytes) -> bool:
        return name in {b"", self._export.name.encode()}

    def _export_name(self, _option: int, payload: bytes) -> list[Event]:
        """EXPORT_NAME cannot report errors: an unknown name ends the connection."""
        if not self._serves(payload):
            return self._close("unknown export name")
        tail = b"" if self._no_zeroes else bytes(124)
        return self._enter(Send(_EXPORT.pack(self._export.size, self._export.flags) + tail))

    def _abort(self, option: int, _payload: bytes) -> list[Event]:
        return self._close("the client aborted", _reply(option, c.OptionReply.ACK))

    def _list(self, option: int, payload: bytes) -> list[Event]:
        if payload:
            return [_reply(option, c.OptionReply.ERR_INVALID, b"LIST takes no data")]
        name = self._export.name.encode()
        entry = _U32.pack(len(name)) + name + self._export.description.encode()
        return [_reply(option, c.OptionReply.SERVER, entry), _reply(option, c.OptionReply.ACK)]

    def _info_or_go(self, option: int, payload: bytes) -> list[Event]:
        parsed = _parse_info_request(payload)
        if parsed is None:
            return [_reply(option, c.OptionReply.ERR_INVALID, b"malformed request")]
        name, wanted = parsed
        if not self._serves(name):
            return [_reply(option, c.OptionReply.ERR_UNKNOWN, b"no such export")]
        export = self._export
        facts = [_U16.pack(c.InfoType.EXPORT) + _EXPORT.pack(export.size, export.flags)]
        if c.InfoType.NAME in wanted:
            facts.append(_U16.pack(c.InfoType.NAME) + export.name.encode())
        if c.InfoType.DESCRIPTION in wanted:
            facts.append(_U16.pack(c.InfoType.DESCRIPTION) + export.description.encode())
        if c.InfoType.BLOCK_SIZE in wanted:
            sizes = (c.MIN_BLOCK_BYTES, c.PREFERRED_BLOCK_BYTES, c.MAX_PAYLOAD_BYTES)
            facts.append(struct.pack(">HIII", c.InfoType.BLOCK_SIZE, *sizes))
        replies: list[Event] = [_reply(option, c.OptionReply.INFO, fact) for fact in facts]
        replies.append(_reply(option, c.OptionReply.ACK))
        return self._enter(*replies) if option == c.Option.GO else replies

    def _unsupported(self, option: int, _payload: bytes) -> list[Event]:
        return [_reply(option, c.OptionReply.ERR_UNSUP)]


_Answer = Callable[[Handshake, int, bytes], list[Event]]

# Whatever is missing here (STARTTLS, STRUCTURED_REPLY, meta contexts, the future) gets ERR_UNSUP: the
# kernel's driver reads simple replies only, so nothing is lost by offering nothing else.
_ANSWERS: dict[int, _Answer] = {
    c.Option.EXPORT_NAME: Handshake._export_name,  # noqa: SLF001  the table belongs to the class
    c.Option.ABORT: Handshake._abort,  # noqa: SLF001
    c.Option.LIST: Handshake._list,  # noqa: SLF001
    c.Option.INFO: Handshake._info_or_go,  # noqa: SLF001
    c.Option.GO: Handshake._info_or_go,  # noqa: SLF001
}


def _reply(option: int, kind: c.OptionReply, payload: bytes = b"") -> Send:
    return Send(_REPLY.pack(c.OPTION_REPLY_MAGIC, option, kind, len(payload)) + payload)


def _parse_info_request(payload: bytes) -> tuple[bytes, frozenset[int]] | None:
    """Name and wanted information types of INFO and GO; None when the lengths do not add up."""
    if len(payload) < _U32.size + _U16.size:
        return None
    (name_bytes,) = _U32.unpack_from(payload)
    if name_bytes > len(payload) - _U32.size - _U16.size:
        return None
    name_end = _U32.size + name_bytes
    (count,) = _U16.unpack_from(payload, name_end)
    first = name_end + _U16.size
    if len(payload) != first + 2 * count:
        return None
    return payload[_U32.size : name_end], frozenset(struct.unpack_from(f">{count}H", payload, first))
