"""Running the application under uvicorn: sockets, workers, draining, slow clients."""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from types import FrameType

import structlog
import uvicorn

from gateway.api.app import create_app
from gateway.api.connection import Connection
from gateway.api.worker import Worker
from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.logs import configure
from gateway.services import prepared, sweep

_GRACE_SECONDS = 30
_BACKLOG = 2048
_RESTART_SECONDS = 0.5

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """Drains before it stops: not ready → go on accepting a little → stop accepting → finish what is under way."""

    def __init__(self, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second one: stop now."""
        if self._draining or not self.started or sig == signal.SIGINT:
            super().handle_exit(sig, frame)
            return
        self._draining = True
        worker: Worker = self.config.loaded_app.state.worker
        worker.draining = True
        asyncio.get_running_loop().call_later(self._drain_seconds, super().handle_exit, sig, frame)


def serve(settings: Settings) -> int:
    """Serve until a signal ends it. Returns the exit status.

    Raises ``ConfigurationError`` or ``StorageError`` before anything is started.
    """
    check_exposure(settings)
    sock = _listen(settings)
    with sock, prepared(settings):
        return _run(settings, sock)


def _run(settings: Settings, sock: socket.socket) -> int:
    host, port = sock.getsockname()[:2]
    log.info(
        "listening",
        url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
        data_dir=str(settings.data_dir),
    )
    if settings.workers == 1:
        # uvicorn raises the signal that ended it once more when it is done; a service that stopped as told exits with 0.
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, lambda _signal, _frame: None)
        run_worker(settings, sock)
        return 0
    return _supervise(settings, sock)


def check_exposure(settings: Settings) -> None:
    """Refuse to offer devices to everybody by accident."""
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not loopback and not settings.tokens and not settings.allow_anonymous:
        raise ConfigurationError(
            f"listening on {settings.host} without tokens would let anybody register and read devices; configure tokens, "
            "or say allow_anonymous (BLOCKGATE_ALLOW_ANONYMOUS=1) if the network is trusted"
        )


def run_worker(settings: Settings, sock: socket.socket) -> None:
    """One serving process."""
    if multiprocessing.parent_process() is not None:
        _end_with_parent()
    configure(settings.log_format, settings.log_level)
    config = uvicorn.Config(
        create_app(settings),
        http=Connection,
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=True,  # RFC 9110 section 6.6.1; nodes compare their clocks with it
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _Server(config, settings.drain_seconds).run(sockets=[sock])


def _end_with_parent() -> None:
    """Have the kernel end this worker when its supervisor dies without a word (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        os.kill(os.getpid(), signal.SIGTERM)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --host and --port"
        ) from error
    sock.listen(_BACKLOG)
    sock.set_inheritable(True)
    return sock


def _supervise(settings: Settings, sock: socket.socket) -> int:
    """Keep ``workers`` processes running; pass signals on to them."""
    context = multiprocessing.get_context("spawn")
    stopping = False
    processes: list[BaseProcess] = []

    def start() -> None:
        process = context.Process(target=run_worker, args=(settings, sock), name="blockgate-worker")
        process.start()
        processes.append(process)

    def stop(sig: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, sig)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while len(processes) < settings.workers and not stopping:
        start()
    while processes:
        multiprocessing.connection.wait([process.sentinel for process in processes])
        for process in [process for process in processes if not process.is_alive()]:
            process.join()
            processes.remove(process)
            if not stopping:
                log.error("worker ended", pid=process.pid, status=process.exitcode)
                sweep(settings, process.pid or 0)
                # One that cannot start would be started over and over.
                time.sleep(_RESTART_SECONDS)
                if not stopping:
                    start()
    return 0
