"""A slow link in front of a local server: one rate for all connections together, a delay each way, bytes counted."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

_PIECE_BYTES = 16 << 10
_PIECES_UNDER_WAY = 64  # so much is on the wire at most; it bounds nothing at the rates and delays used here


class _Direction:
    """The pieces of all connections pass one behind the other, each as long as the rate wants."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._turn = asyncio.Lock()
        self._free = 0.0
        self.bytes = 0

    async def send(self, size: int) -> float:
        """Wait until the last bit has left; returns that time, of the loop's clock."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            self._free = max(self._free, loop.time()) + size / self._rate
            self.bytes += size
            await asyncio.sleep(self._free - loop.time())
            return self._free


class Link:
    """What passed. ``port`` is where the server behind the link is reached through it."""

    def __init__(self, port: int, up: _Direction, down: _Direction) -> None:
        self.port = port
        self._directions = up, down

    @property
    def bytes(self) -> int:
        """Bytes in both directions so far, HTTP heads included; TCP's and IP's own are not."""
        return sum(direction.bytes for direction in self._directions)


@contextlib.contextmanager
def slow_link(to_port: int, *, bits_per_second: float, delay_seconds: float) -> Iterator[Link]:
    """A port of loopback that leads to ``to_port``. A connection costs a round trip before its first byte, as TCP's does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="link", daemon=True)
    thread.start()
    up, down = (_Direction(bits_per_second / 8) for _ in range(2))

    pumps: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = loop.time() + 2 * delay_seconds
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", to_port)
        except OSError:
            writer.transport.abort()
            return
        both = {
            loop.create_task(_pump(reader, there_writer, up, delay_seconds, ready)),
            loop.create_task(_pump(there_reader, writer, down, delay_seconds, ready)),
        }
        pumps.update(both)
        await asyncio.wait(both)
        pumps.difference_update(both)

    async def start() -> asyncio.Server:
        return await asyncio.start_server(accept, "127.0.0.1", 0)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await asyncio.sleep(0)  # those who waited for them end too

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield Link(server.sockets[0].getsockname()[1], up, down)
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    direction: _Direction,
    delay_seconds: float,
    ready: float,
) -> None:
    """Carry one direction of a connection to its end."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_UNDER_WAY)

    async def arrive() -> None:
        while True:
            at, piece = await under_way.get()
            await asyncio.sleep(at - loop.time())
            if not piece:
                return
            writer.write(piece)
            await writer.drain()

    arriving = asyncio.create_task(arrive())
    try:
        while piece := await reader.read(_PIECE_BYTES):
            await asyncio.sleep(ready - loop.time())
            await under_way.put((await direction.send(len(piece)) + delay_seconds, piece))
        await under_way.put((loop.time() + delay_seconds, b""))
        await arriving
    except OSError:
        pass  # one side is gone; so is the connection
    finally:
        arriving.cancel()
        await asyncio.gather(arriving, return_exceptions=True)
        writer.close()
