"""Start the programs that a test needs, wait until they answer, and end them with the test.

Programs run on loopback and on ports that nobody else takes. Their output goes to a file, so that a failed start can
show what the program said.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

# Servers are administrators' programs: a plain user's PATH often lacks their folder.
_PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_POLL_SECONDS = 0.02

# What says to every other test of this machine that a port is taken, for as long as this process lives.
_claims: dict[int, socket.socket] = {}

Ready = Callable[[], bool]


def require_program(name: str, *, package: str | None = None) -> str:
    """The path of a program of this machine; skips the test, naming the Debian package, where it is missing."""
    path = shutil.which(name, path=_PROGRAM_PATH)
    if path is None:
        pytest.skip(f"the program {name} is missing: install the Debian package {package or name}")
    return path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that no other test is given while this process lives.

    It lies below those that the kernel gives to outgoing connections: one of them could otherwise take the port before
    the program does, or while it restarts, and whoever polls the port could be connected to itself.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(10_000, end), end - 10_000):
        with contextlib.ExitStack() as undo, contextlib.suppress(OSError):
            claim = undo.enter_context(socket.socket(socket.AF_UNIX))
            claim.bind(f"\0blockgate-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            undo.pop_all()
            _claims[port] = claim
            return port
    raise RuntimeError("no TCP port between 10000 and the outgoing connections' is free")


def port_answers(port: int) -> Ready:
    """Ready once something accepts connections on 127.0.0.1:port."""

    def ready() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    return ready


def socket_answers(path: Path) -> Ready:
    """Ready once something accepts connections on the unix socket."""

    def ready() -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(str(path))
            return True
        return False

    return ready


def http_answers(url: str) -> Ready:
    """Ready once the URL is answered with any status below 500."""
    # Loopback is never reached through a proxy, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool:
        try:
            with opener.open(url, timeout=1):
                return True
        except urllib.error.HTTPError as error:
            with error:
                return error.code < 500
        except OSError:
            return False

    return ready


def wait_until(ready: Ready, *, what: str, seconds: float = 20, alive: Ready | None = None) -> None:
    """Poll until `ready`; raises TimeoutError after `seconds`, RuntimeError as soon as `alive` is false."""
    deadline = time.monotonic() + seconds
    while not ready():
        if alive is not None and not alive():
            raise RuntimeError(f"{what} ended before it was ready")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready within {seconds:g} s")
        time.sleep(_POLL_SECONDS)


class Process:
    """A program that runs for as long as the `with` block.

    Args:
        argv: the program and its arguments.
        log: the file that collects its standard output and standard error.
        ready: what is polled until the program may be used; without it, the block begins at once.
        env: variables set on top of this process' environment.
        user: the account to run as, for programs that refuse to run as root.
        stop_signal: what asks the program to end; SIGKILL follows after `stop_seconds`.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        ready: Ready | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        start_seconds: float = 20,
        stop_seconds: float = 10,
    ) -> None:
        self.argv = [str(argument) for argument in argv]
        self.log = log
        self._ready = ready
        self._env = dict(env or {})
        self._cwd = cwd
        self._user = user
        self._stop_signal = stop_signal
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while the program runs; minus the signal's number if one ended it."""
        return self._started().poll()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._env,
                cwd=self._cwd,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )
        if self._ready is not None:
            try:
                wait_until(
                    self._ready,
                    what=self.argv[0],
                    seconds=self._start_seconds,
                    alive=lambda: self.returncode is None,
                )
            except (TimeoutError, RuntimeError) as error:
                self.stop()
                error.add_note(f"{' '.join(self.argv)}\n{self.output[-4000:]}")
                raise
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Ask the program to end, make it end, and return its exit status. Harmless once it has ended."""
        popen = self._started()
        if popen.poll() is None:
            popen.send_signal(self._stop_signal)
            try:
                popen.wait(self._stop_seconds)
            except subprocess.TimeoutExpired:
                popen.kill()
        return popen.wait()

    def kill(self) -> None:
        """End the program as a crash would: no goodbye, no clean-up."""
        self._started().kill()
        self._started().wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise RuntimeError(f"{self.argv[0]} was not started: use it in a with block")
        return self._popen
