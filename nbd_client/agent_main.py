"""The agent's process: ``python -m nbd_client.agent_main --run-dir DIR``. Started by the command line or systemd.

Kept apart from the command line's imports: an agent that waits costs little memory.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import fcntl
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blockgate.environment import gateway_token
from nbd_client.agent import Agent
from nbd_client.control import DEFAULT_RUN_DIR, serve_control, socket_path
from nbd_client.environment import configured
from nbd_client.errors import BlockgateError, KernelUnsupported
from nbd_client.kernel.attach import Attachment, KernelAttachment
from nbd_client.kernel.ioctl import IoctlAttachment
from nbd_client.kernel.netlink import NbdNetlink
from nbd_client.kernel.sysfs import Sysfs
from nbd_client.logs import configure
from nbd_client.metrics import serve_metrics
from nbd_client.options import metrics_address
from nbd_client.recovery import Records
from nbd_client.report import REPORT_SECONDS, Reporter, node_name
from nbd_client.server import clear_stale_socket
from nbd_client.serving import run_loop
from nbd_client.source.stack import SourceOptions, open_source

log = logging.getLogger(__name__)

_PR_SET_IO_FLUSHER = 57
_OOM_SCORE = "-900"
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="blockgate-nbd agent", description="Hold NBD devices.")
    parser.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIR)
    parser.add_argument(
        "--metrics", metavar="[HOST:]PORT", help="Prometheus metrics; a port alone is on loopback"
    )
    arguments = parser.parse_args()
    run_dir: Path = arguments.run_dir.absolute()
    configure()
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(run_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another agent serves %s", run_dir)
        return 0
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    os.chdir("/")  # no file system is kept from being unmounted
    harden()
    try:
        run_loop(_run(run_dir, _options(arguments.metrics)))
    except BlockgateError as error:
        log.error("%s", error)
        return 1
    return 0


def harden() -> None:
    """What keeps a process alive that the node's own file systems wait for; as far as it is allowed.

    PR_SET_IO_FLUSHER: memory reclaim never waits for the device that this very process serves (before any
    thread starts: it is inherited). mlockall on fault: what was touched is not swapped out.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


async def _run(run_dir: Path, options: _Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sysfs = Sysfs()
    open_url = partial(open_source, options=options.source)
    agent = Agent(Records(run_dir), _LazyKernel(sysfs).get, sysfs, open_url=open_url)
    await agent.recover()

    async def listed() -> object:
        return agent.list()

    async def show(device: str) -> object:
        return agent.show(device)

    async def export(url: str, path: str) -> int:
        return await agent.export(url, Path(path))

    async def unexport(path: str) -> None:
        await agent.unexport(Path(path))

    clear_stale_socket(socket_path(run_dir))
    control = await serve_control(
        run_dir,
        {
            "attach": agent.attach,
            "detach": agent.detach,
            "reattach": agent.reattach,
            "list": listed,
            "show": show,
            "recovered": agent.wait_recovered,
            "export": export,
            "unexport": unexport,
        },
    )
    resting = loop.create_task(agent.rest_idle())
    reporter = Reporter(options.node_name or node_name(), agent.attached, token=options.source.token)
    reporting = loop.create_task(reporter.run(options.report_seconds)) if options.report_seconds else None
    shown: asyncio.Server | None = None
    try:
        if options.metrics is not None:
            shown = await serve_metrics(*options.metrics, agent.served)
        await stop.wait()
    finally:
        if shown is not None:
            shown.close()
        control.close()
        socket_path(run_dir).unlink(missing_ok=True)
        resting.cancel()
        if reporting is not None:
            reporting.cancel()
        await agent.park()
        log.info("parked; devices wait for the next agent")


@dataclass(frozen=True, slots=True)
class _Options:
    source: SourceOptions
    metrics: tuple[str, int] | None
    report_seconds: float = REPORT_SECONDS
    node_name: str | None = None


def _options(metrics: str | None) -> _Options:
    """Raises ``InvalidOption``."""
    if not configured():
        return _Options(SourceOptions(token=gateway_token()), metrics_address(metrics) if metrics else None)
    from nbd_client.config import load  # noqa: PLC0415  pydantic is slow to import

    settings = load(metrics=metrics)
    return _Options(
        settings.source_options(),
        metrics_address(settings.metrics) if settings.metrics else None,
        settings.report_seconds,
        settings.node_name,
    )


class _LazyKernel:
    """The driver is looked for when a device is asked for: exports work without it."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._kernel: Attachment | None = None

    def get(self) -> Attachment:
        if self._kernel is None:
            try:
                self._kernel = KernelAttachment(NbdNetlink.open(), self._sysfs)
            except KernelUnsupported as error:
                if not self._sysfs.devices():
                    raise
                log.warning("%s; ioctl is used, so devices do not outlive this process", error)
                self._kernel = IoctlAttachment(self._sysfs)
        return self._kernel


if __name__ == "__main__":
    sys.exit(main())
