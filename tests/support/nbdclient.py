"""An NBD client for tests: asyncio streams around the package's own client side of the protocol."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from nbd_client.protocol.constants import Command
from tests.support.nbdclientside import ClientHandshake, Negotiated, Reply, ReplyDecoder, encode_request


class NbdClient:
    def __init__(self, reader, writer, negotiated: Negotiated) -> None:
        self.reader, self.writer, self.negotiated = reader, writer, negotiated
        self._decoder = ReplyDecoder()
        self._cookies = count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._pump = asyncio.get_running_loop().create_task(self._receive())

    @property
    def size(self) -> int:
        return self.negotiated.size

    async def _receive(self) -> None:
        try:
            while data := await self.reader.read(1 << 18):
                for reply in self._decoder.receive(data):
                    self._waiting.pop(reply.cookie).set_result(reply)
        except ConnectionError:
            pass
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EOFError("the server closed"))

    def send(self, command: int, offset=0, length=0, payload=b"", flags=0) -> asyncio.Future[Reply]:
        cookie = next(self._cookies)
        self._decoder.expect(cookie, length if command == Command.READ else 0)
        future = self._waiting[cookie] = asyncio.get_running_loop().create_future()
        self.writer.write(encode_request(command, cookie, offset, length, flags) + payload)
        return future

    async def ask(self, *args, **kwargs) -> Reply:
        return await asyncio.wait_for(self.send(*args, **kwargs), 20)

    async def read(self, offset: int, length: int) -> Reply:
        return await self.ask(Command.READ, offset, length)

    async def closed(self) -> None:
        """Wait until the server closed the connection."""
        await asyncio.wait_for(asyncio.shield(self._pump), 20)

    async def aclose(self) -> None:
        self.writer.transport.abort()
        await self._pump


async def open_socket(unix: Path | None = None, port: int = 0):
    if unix is not None:
        return await asyncio.open_unix_connection(str(unix))
    return await asyncio.open_connection("127.0.0.1", port)


@asynccontextmanager
async def nbd_client(unix: Path | None = None, port: int = 0, name: str = ""):
    reader, writer = await open_socket(unix, port)
    handshake = ClientHandshake(name)
    while handshake.result is None:
        data = await asyncio.wait_for(reader.read(4096), 20)
        if not data:
            writer.close()
            raise EOFError("the server closed during the handshake")
        writer.write(handshake.receive(data))
    client = NbdClient(reader, writer, handshake.result)
    try:
        yield client
    finally:
        await client.aclose()
