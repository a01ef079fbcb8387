"""Generic netlink family "nbd" (linux/nbd-netlink.h), with nothing but ``socket`` and ``struct``.

Netlink attributes are ``u16 length, u16 type, payload`` padded to four bytes, in the machine's byte order;
generic netlink puts ``u8 command, u8 version, u16 reserved`` before them (linux/genetlink.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from nbd_client.errors import DeviceBusy, KernelError, KernelUnsupported
from nbd_client.protocol.constants import TransmissionFlag

_NETLINK_GENERIC = 16
_CONTROL_FAMILY, _GET_FAMILY = 16, 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_REQUEST, _ACK = 1, 4
_ERROR = 2
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=i")
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_ANSWER_SECONDS = 30.0

# What the kernel is told about our server: simple reads, from any of several sockets.
SERVER_FLAGS = int(TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY | TransmissionFlag.CAN_MULTI_CONN)


class Command(IntEnum):
    """NBD_CMD_*."""

    CONNECT = 1
    DISCONNECT = 2
    RECONFIGURE = 3
    STATUS = 5


class Attribute(IntEnum):
    """NBD_ATTR_*."""

    INDEX = 1
    SIZE_BYTES = 2
    BLOCK_SIZE_BYTES = 3
    TIMEOUT = 4
    SERVER_FLAGS = 5
    CLIENT_FLAGS = 6
    SOCKETS = 7
    DEAD_CONN_TIMEOUT = 8
    DEVICE_LIST = 9
    BACKEND_IDENTIFIER = 10


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """A new device. ``index`` None takes the first free one; sizes in bytes, timeouts in seconds."""

    size: int
    block_size: int
    timeout_seconds: int
    dead_conn_timeout_seconds: int
    backend: str
    socket_fds: tuple[int, ...]
    index: int | None = None


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, children: Iterable[bytes]) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(children))


def parse_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each attribute, in order. Raises ``KernelError`` when the lengths make no sense."""
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if not _ATTRIBUTE.size <= length <= len(data) - position:
            raise KernelError("the kernel's netlink answer is malformed")
        yield kind & _TYPE_MASK, data[position + _ATTRIBUTE.size : position + length]
        position += length + -length % 4


def encode_sockets(fds: Iterable[int]) -> bytes:
    """NBD_ATTR_SOCKETS: a list of items, each holding one descriptor."""
    return nested(Attribute.SOCKETS, (nested(1, [attribute(1, _U32.pack(fd))]) for fd in fds))


def encode_connect(request: ConnectRequest) -> bytes:
    """The attributes of CONNECT."""
    index = b"" if request.index is None else attribute(Attribute.INDEX, _U32.pack(request.index))
    return index + b"".join(
        [
            attribute(Attribute.SIZE_BYTES, _U64.pack(request.size)),
            attribute(Attribute.BLOCK_SIZE_BYTES, _U64.pack(request.block_size)),
            attribute(Attribute.TIMEOUT, _U64.pack(request.timeout_seconds)),
            attribute(Attribute.SERVER_FLAGS, _U64.pack(SERVER_FLAGS)),
            attribute(Attribute.DEAD_CONN_TIMEOUT, _U64.pack(request.dead_conn_timeout_seconds)),
            attribute(Attribute.BACKEND_IDENTIFIER, request.backend.encode() + b"\0"),
            encode_sockets(request.socket_fds),
        ]
    )


def encode_reconfigure(index: int, backend: str, fds: Iterable[int]) -> bytes:
    """The attributes of RECONFIGURE; the kernel refuses another backend identifier than CONNECT's."""
    return (
        attribute(Attribute.INDEX, _U32.pack(index))
        + attribute(Attribute.BACKEND_IDENTIFIER, backend.encode() + b"\0")
        + encode_sockets(fds)
    )


class NbdNetlink:
    """A socket to the kernel's NBD driver. Calls block for moments; use it from one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sequence = 0
        self._family = _CONTROL_FAMILY

    @classmethod
    def open(cls) -> Self:
        """Find the family. Raises ``KernelUnsupported`` when the driver is not there."""
        connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        connection.settimeout(_ANSWER_SECONDS)
        netlink = cls(connection)
        try:
            connection.bind((0, 0))
            answers = netlink._call(_GET_FAMILY, attribute(_FAMILY_NAME, b"nbd\0"))
            (netlink._family,) = _U16.unpack(dict(parse_attributes(answers[0]))[_FAMILY_ID])
        except (OSError, LookupError, struct.error) as error:
            connection.close()
            raise KernelUnsupported(
                f"the kernel has no NBD netlink interface ({error}); load it with: modprobe nbd"
            ) from error
        return netlink

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def connect(self, request: ConnectRequest) -> int:
        """Make a device; return its index. Raises ``DeviceBusy`` or another ``KernelError``."""
        answers = self._checked(Command.CONNECT, encode_connect(request))
        for answer in answers:
            found = dict(parse_attributes(answer)).get(Attribute.INDEX)
            if found is not None:
                index: int = _U32.unpack(found)[0]
                return index
        raise KernelError("the kernel did not say which device it made")

    def reconfigure(self, index: int, backend: str, fds: Iterable[int]) -> None:
        """Give a device new sockets in place of dead ones. Raises ``KernelError``.

        Success does not mean that a socket was installed: see :mod:`nbd_client.kernel.attach`.
        """
        self._checked(Command.RECONFIGURE, encode_reconfigure(index, backend, fds))

    def disconnect(self, index: int) -> None:
        """Take a device down, whoever uses it. Raises ``KernelError``."""
        self._checked(Command.DISCONNECT, attribute(Attribute.INDEX, _U32.pack(index)))

    def _checked(self, command: Command, attributes: bytes) -> list[bytes]:
        try:
            return self._call(command, attributes)
        except OSError as error:
            text = f"the kernel refused NBD {command.name}: {error.strerror}"
            if error.errno == errno.EBUSY:
                raise DeviceBusy(f"{text}; the device is in use") from error
            if error.errno in {errno.EPERM, errno.EACCES}:
                raise KernelUnsupported(f"{text}; run it as root (CAP_SYS_ADMIN)") from error
            raise KernelError(text) from error

    def _call(self, command: int, attributes: bytes) -> list[bytes]:
        """Send one request; return the attributes of the answers. Raises ``OSError`` as the kernel says."""
        self._sequence += 1
        body = _GENERIC.pack(command, 1, 0) + attributes
        header = _HEADER.pack(_HEADER.size + len(body), self._family, _REQUEST | _ACK, self._sequence, 0)
        self._socket.send(header + body)
        answers: list[bytes] = []
        while True:
            data = self._socket.recv(1 << 16)
            for kind, sequence, payload in _messages(data):
                if sequence != self._sequence:
                    continue  # of an earlier call that was given up
                if kind == _ERROR:
                    (number,) = _NUMBER.unpack_from(payload)
                    if number:
                        raise OSError(-number, os.strerror(-number))
                    return answers
                answers.append(payload[_GENERIC.size :])


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, position)
        if not _HEADER.size <= length <= len(data) - position:
            raise KernelError("the kernel's netlink answer is malformed")
        yield kind, sequence, data[position + _HEADER.size : position + length]
        position += length + -length % 4
