"""The gateway as a user runs it: ``python -m gateway serve`` on a free port, with its data in a folder of the test's.

::

    with Gateway(tmp_path / "gateway", oci_roots=[layout]) as gateway:
        device = gateway.register("root", {"source": {"image": f"oci:{layout}:latest"}})
        with gateway.reader("root") as reader:
            assert reader.read(512, 1024) == tar[512:1024]
"""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.processes import Process, free_port, http_answers

_REPOSITORY = Path(__file__).parents[2]
_POLL_SECONDS = 0.02

Document = dict[str, Any]


class Gateway:
    """Runs for as long as the ``with`` block.

    Args:
        folder: receives the data folder, the logs and an empty home: nothing of this machine's user is read.
        oci_roots: folders below which OCI layouts may be registered.
        arguments: more flags of ``serve``.
        settings: ``BLOCKGATE_…`` variables without their prefix, in lower case.
        env: other variables.
        data_dir: where the data goes instead.
        start_seconds: for each start.
        wrapper: a command that runs the gateway in its place by ``exec``, as ``prlimit --nofile=64`` does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        oci_roots: Sequence[Path] = (),
        arguments: Sequence[str | Path] = (),
        settings: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        start_seconds: float = 60,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.data_dir = data_dir or folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.settings: dict[str, object] = {"drain_seconds": 0.1, **(settings or {})}
        self._arguments = [str(argument) for argument in arguments]
        for root in oci_roots:
            self._arguments += ["--oci-root", str(root)]
        self._env = dict(env or {})
        self._process: Process | None = None
        self._starts = 0
        self._start_seconds = start_seconds
        self._wrapper = list(wrapper)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "home").mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.running.stop()
        if error is not None:
            error.add_note(f"the gateway's log ends with:\n{self.log[-3000:]}")

    @property
    def running(self) -> Process:
        assert self._process is not None, "the gateway was not started: use it in a with block"
        return self._process

    @property
    def log(self) -> str:
        """What all starts so far wrote."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("log.*")))

    def start(self) -> None:
        """Start and wait until it is ready."""
        self._starts += 1
        home = str(self.folder / "home")
        env = {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home, "XDG_RUNTIME_DIR": home}
        env |= {f"BLOCKGATE_{name.upper()}": _text(value) for name, value in self.settings.items()}
        argv = [*self._wrapper, sys.executable, "-m", "gateway", "serve", "--port", str(self.port)]
        self._process = Process(
            [*argv, "--data-dir", str(self.data_dir), *self._arguments],
            log=self.folder / f"log.{self._starts:03}",
            ready=http_answers(f"{self.url}/readyz"),
            env=env | self._env,
            cwd=_REPOSITORY,
            start_seconds=self._start_seconds,
            stop_seconds=45,
        ).__enter__()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self.running.stop()

    def kill(self) -> None:
        """SIGKILL: a crash."""
        self.running.kill()

    def restart(self, *, crash: bool = False) -> None:
        """Stop (or kill) and start again, on the same port and with the same data."""
        if crash:
            self.kill()
        else:
            assert self.stop() == 0
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.running.pid, number)

    def workers(self) -> list[int]:
        """Process ids of the workers (Linux)."""
        children = Path(f"/proc/{self.running.pid}/task/{self.running.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if b"spawn_main" in _command_line(pid)]

    def rss_bytes(self) -> int:
        """Resident memory of the serving process."""
        return self._memory("VmRSS")

    def peak_bytes(self) -> int:
        """The most resident memory since the start, or since ``reset_peak``."""
        return self._memory("VmHWM")

    def reset_peak(self) -> None:
        """Let the peak begin anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.running.pid}/clear_refs").write_text("5")

    def _memory(self, field: str) -> int:
        status = Path(f"/proc/{self.running.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))

    # --- devices

    def put(self, name: str, body: Mapping[str, Any]) -> httpx.Response:
        """Ask for a registration without waiting for its end."""
        return self.http.put(f"/v1/devices/{name}", json=dict(body))

    def show(self, name: str) -> Document:
        """The device."""
        answer = self.http.get(f"/v1/devices/{name}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def settled(self, name: str, *, verified: bool = False, seconds: float = 60) -> Document:
        """The device once it is not being indexed any more (and, if wanted, not being verified either)."""
        deadline = time.monotonic() + seconds
        while True:
            device = self.show(name)
            waiting = device["state"] == "indexing" or (verified and device["verification"] == "verifying")
            if not waiting:
                return device
            assert time.monotonic() < deadline, f"{name} is still {device['state']}: {device['progress']}"
            time.sleep(_POLL_SECONDS)

    def register(self, name: str, body: Mapping[str, Any], *, verified: bool = False) -> Document:
        """Register, wait, and return the device: ready or failed."""
        answer = self.put(name, body)
        assert answer.status_code in (200, 202), answer.text
        return self.settled(name, verified=verified)

    def upload(self, content: bytes) -> str:
        """Upload an artifact; returns its digest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        answer = self.http.put(f"/v1/artifacts/{digest}", content=content)
        assert answer.status_code in (200, 201), answer.text
        return digest

    def data_url(self, name: str) -> str:
        """Where the device's bytes are."""
        return f"{self.url}/v1/devices/{name}/data"

    def get(self, name: str, start: int, stop: int) -> httpx.Response:
        """One range of a device."""
        return self.http.get(f"/v1/devices/{name}/data", headers={"Range": f"bytes={start}-{stop - 1}"})

    @contextlib.contextmanager
    def reader(self, name: str) -> Iterator["DeviceReader"]:
        """One kept connection for many ranges."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            yield DeviceReader(connection, f"/v1/devices/{name}/data")

    def drop_caches(self) -> None:
        """Forget every cached span."""
        assert self.http.delete("/v1/cache").status_code == 200

    # --- what lies in the data folder

    def span_files(self) -> list[Path]:
        """Files of the disk cache."""
        return sorted(self.data_dir.glob("cache/*/*/*.span"))

    def temporary_files(self) -> list[Path]:
        """What an unfinished write would leave."""
        return [path for path in self.data_dir.rglob("*") if path.name.endswith(".tmp")]

    def index_folder(self, digest: str) -> Path:
        """The one finished index of a layer."""
        folders = [
            path
            for path in (self.data_dir / "layers" / digest.removeprefix("sha256:")).glob("*/*")
            if not path.parent.name.endswith("-unproven")
        ]
        assert len(folders) == 1, folders
        return folders[0]


class DeviceReader:
    """Reads ranges over one connection, with less work per request than a full client does."""

    def __init__(self, connection: http.client.HTTPConnection, path: str) -> None:
        self._connection = connection
        self._path = path

    def read(self, start: int, stop: int) -> bytes:
        """Exactly ``[start, stop)``; fails for any other answer."""
        self._connection.request("GET", self._path, headers={"Range": f"bytes={start}-{stop - 1}"})
        response = self._connection.getresponse()
        body = response.read()
        assert response.status == 206, f"{start}-{stop}: {response.status} {body[:500]!r}"
        label = response.headers["Content-Range"].partition("/")[0]
        assert label == f"bytes {start}-{stop - 1}", label
        return body

    def differences(
        self, expected: bytes | memoryview, ranges: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """The ranges whose bytes are not those of ``expected``."""
        return [(start, stop) for start, stop in ranges if self.read(start, stop) != expected[start:stop]]


def cli(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of ``python -m gateway`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        cwd=_REPOSITORY,
        env=os.environ | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def around(edges: Iterable[int], size: int, reach: int = 2) -> Iterator[tuple[int, int]]:
    """Every range between ``reach`` bytes before and behind each edge: ending there, beginning there, crossing."""
    for edge in sorted(set(edges)):
        for start in range(max(0, edge - reach), min(size, edge + reach)):
            for stop in range(start + 1, min(size, edge + reach) + 1):
                yield start, stop


def _text(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, default=str)


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
