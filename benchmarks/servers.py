"""What is measured and what it is measured against: nginx as a registry and as a file server, and the gateway."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.layers import Layer
from tests.support.processes import Process, free_port, port_answers, require_program, wait_until

_ECHO_MODULE = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_REPOSITORY = "bench/layer"
_LOG_SETTLES_SECONDS = 0.3

_NGINX = """\
{modules}
daemon off;
worker_processes 1;
pid {state}/pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    log_format ranges '$request_method $uri $status $body_bytes_sent "$http_range"';
    access_log {log};
    client_body_temp_path {state}/body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    default_type application/octet-stream;
    keepalive_requests 100000000;
    sendfile on;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ {answer} }}
        location @files {{ root {folder}; }}
    }}
}}
"""


def document(content: dict) -> tuple[str, bytes]:
    """A JSON document and its digest."""
    body = json.dumps(content).encode()
    return f"sha256:{hashlib.sha256(body).hexdigest()}", body


def image(layers: list[tuple[str, str, int]]) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Manifest and configuration, each with its digest, of an image of gzip layers (digest, diff_id, size)."""
    config = document(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id, _ in layers]},
        }
    )
    manifest = document(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config[0],
                "size": len(config[1]),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": digest,
                    "size": size,
                }
                for digest, _, size in layers
            ],
        }
    )
    return manifest, config


@contextlib.contextmanager
def nginx(
    folder: Path, state: Path, *, delay_seconds: float = 0.0, log: bool = True
) -> Iterator[tuple[int, int]]:
    """Serve ``folder`` with one worker; yields port and the worker's process id."""
    program = require_program("nginx", package="nginx-light")
    modules, answer = "", f"root {folder};"
    if delay_seconds:
        if not _ECHO_MODULE.exists():
            pytest.skip(
                f"nginx's echo module is missing ({_ECHO_MODULE}): install the Debian package nginx-light"
            )
        modules = f"load_module {_ECHO_MODULE};"
        answer = f"echo_sleep {delay_seconds:.3f}; echo_exec @files;"
    state.mkdir(parents=True)
    port = free_port()
    configuration = state / "nginx.conf"
    configuration.write_text(
        ("user root;\n" if os.geteuid() == 0 else "")
        + _NGINX.format(
            modules=modules,
            answer=answer,
            folder=folder,
            state=state,
            port=port,
            log=f"{state}/access.log ranges" if log else "off",
        )
    )
    argv = [program, "-c", configuration, "-e", "stderr"]
    with Process(argv, log=state / "nginx.log", ready=port_answers(port)) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: bool(children.read_text()), what="nginx's worker")
        yield port, int(children.read_text().split()[0])


@dataclass(frozen=True)
class Registry:
    """A registry of one image of one layer, and what it was asked for."""

    port: int
    log: Path
    blob_url: str

    @property
    def image(self) -> str:
        """The reference of the image."""
        return f"127.0.0.1:{self.port}/{_REPOSITORY}:latest"

    def ranges(self) -> Counter[str]:
        """How often each range of a blob was asked for since the log was cleared."""
        return Counter(line.split('"')[1] for line in self._lines() if '"-"' not in line)

    def ranges_bytes(self) -> int:
        """Bytes of all those answers."""
        return sum(int(line.split()[3]) for line in self._lines() if '"-"' not in line)

    def clear(self) -> None:
        """Forget what was asked for so far."""
        time.sleep(
            _LOG_SETTLES_SECONDS
        )  # nginx writes a line when the answer is over, a moment after its reader saw it
        os.truncate(self.log, 0)

    def _lines(self) -> list[str]:
        time.sleep(_LOG_SETTLES_SECONDS)
        return [line for line in self.log.read_text().splitlines() if "/blobs/" in line]


@contextlib.contextmanager
def registry(layer: Layer, folder: Path, *, delay_seconds: float = 0.0) -> Iterator[Registry]:
    """Nginx serving the layer's blob as a registry does: /v2/NAME/manifests and /v2/NAME/blobs."""
    root = folder / "root"
    tree = root / "v2" / _REPOSITORY
    (tree / "manifests").mkdir(parents=True)
    (tree / "blobs").mkdir()
    manifest, config = image([(layer.digest, layer.diff_id, layer.size)])
    for name in ("latest", manifest[0]):
        (tree / "manifests" / name).write_bytes(manifest[1])
    (tree / "blobs" / config[0]).write_bytes(config[1])
    (tree / "blobs" / layer.digest).symlink_to(layer.blob)
    with nginx(root, folder / "nginx", delay_seconds=delay_seconds) as (port, _):
        url = f"http://127.0.0.1:{port}/v2/{_REPOSITORY}/blobs/{layer.digest}"
        yield Registry(port, folder / "nginx" / "access.log", url)


class Gateway:
    """A gateway process, one worker."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def call(self, method: str, path: str, body: dict | None = None, headers: dict | None = None) -> bytes:
        """One request on a connection of its own. Raises ``RuntimeError`` for any answer but 2xx."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status // 100 != 2:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:500]!r}")
        return content

    def register(self, name: str, image: str) -> float:
        """Register the layer alone (layout tar) and wait until it can be read. Returns the seconds that it took."""
        body = {"source": {"image": image, "insecure": True}, "layout": "tar", "layer": {"index": 0}}
        started = time.monotonic()
        self.call("PUT", f"/v1/devices/{name}", body)
        while (device := json.loads(self.call("GET", f"/v1/devices/{name}")))["state"] == "indexing":
            time.sleep(0.05)
        if device["state"] != "ready":
            raise RuntimeError(f"device {name} is {device['state']}: {device['error']}")
        return time.monotonic() - started

    def data_url(self, name: str) -> str:
        """Where the device's bytes are."""
        return f"http://127.0.0.1:{self.port}/v1/devices/{name}/data"

    def forget(self) -> None:
        """Empty the span caches."""
        self.call("DELETE", "/v1/cache")

    def peak_bytes(self) -> int:
        """The most memory that the process ever held."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel does not tell VmHWM")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def gateway(
    folder: Path, memory: str = "256MiB", *, program: Sequence[str] = ("gateway",), log_level: str = "info"
) -> Iterator[Gateway]:
    """``blockgate serve`` with an empty data folder. Its log is JSON on a pipe, which a process of its own reads.

    ``program`` is the module that is run, and arguments that it takes before those of ``gateway``.
    """
    folder.mkdir(parents=True)
    log = folder / "gateway.log"
    port = free_port()
    command = [
        sys.executable,
        "-m",
        *program,
        "serve",
        "--port",
        str(port),
        "--data-dir",
        str(folder / "data"),
    ]
    settings = {
        "BLOCKGATE_MEMORY_CACHE": memory,
        "BLOCKGATE_LOG_FORMAT": "json",
        "BLOCKGATE_LOG_LEVEL": log_level,
        "BLOCKGATE_DRAIN_SECONDS": "0",
    }
    with log.open("wb") as output:
        reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
    with reader.stdin as pipe:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=os.environ | settings
        )
    try:
        running = Gateway(port, process.pid)
        _wait_until_live(running, process, log)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.wait()


def _wait_until_live(gateway: Gateway, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, RuntimeError):
            gateway.call("GET", "/livez")
            return
        time.sleep(0.05)
    raise RuntimeError(f"the gateway did not start:\n{log.read_text()[-4000:]}")
