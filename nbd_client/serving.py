"""``blockgate-nbd serve``: one URL, one server, until a signal."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbd_client.allocator import keep_large_buffers
from nbd_client.metrics import Served, numbers_of, serve_metrics
from nbd_client.server import NbdServer
from nbd_client.source.stack import SourceOptions, open_source


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: a unix socket, a host and port, or both."""

    unix: Path | None
    tcp: tuple[str, int] | None


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on uvloop where it is installed: half the CPU time per request."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop  # noqa: PLC0415  optional
    except ImportError:
        pass
    else:
        loop_factory = uvloop.new_event_loop
    # Everything imported stays; what a read allocates dies by reference count. Fewer and cheaper collections.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    keep_large_buffers()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main)


def serve_forever(
    url: str,
    listen: Listen,
    *,
    export_name: str = "",
    options: SourceOptions | None = None,
    metrics: tuple[str, int] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight.

    Says on standard error when clients can connect. Raises ``BlockgateError`` when it cannot come to that.
    """
    run_loop(_serve(url, listen, export_name, options, metrics))


async def _serve(
    url: str,
    listen: Listen,
    export_name: str,
    options: SourceOptions | None,
    metrics: tuple[str, int] | None,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    source = await open_source(url, options)
    server = NbdServer(source, name=export_name)
    shown: asyncio.Server | None = None
    try:
        where: list[str] = []
        if listen.unix is not None:
            await server.listen_unix(listen.unix)
            where.append(f"unix socket {listen.unix}")
        if listen.tcp is not None:
            host, port = listen.tcp
            where.append(f"{host} port {await server.listen_tcp(host, port)}")
        if metrics is not None:
            shown = await serve_metrics(
                *metrics, lambda: [Served("", "connected", server.counters, numbers_of(source))]
            )
        sys.stderr.write(f"serving {source.size} bytes on {' and '.join(where)}\n")
        sys.stderr.flush()
        await stop.wait()
    finally:
        if shown is not None:
            shown.close()
        await server.aclose()
        await source.aclose()
