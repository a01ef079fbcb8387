"""A whole gateway in this process: its application with its lifespan run, over an OCI layout of small images."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import queue
import socket
import ssl
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from gateway.api.app import create_app
from gateway.api.worker import Worker
from gateway.config import Settings
from gateway.datafolder import DataFolder
from gateway.registry import transport
from gateway.services import Services, prepared
from tests.support import gzips
from tests.support.layers import content, tar_of
from tests.support.ocilayout import LAYER_GZIP, Layer, OciLayout, gzip_layer, tar_layer

TOKENS = {"admin": "the-admin's-token", "node": "a-node's-token", "metrics": "the-scraper's-token"}

BASE = tar_of(
    {"etc/motd": b"hello\n", "usr/lib/one": content(300_000, 1), "usr/lib/two": content(150_000, 2)}
)
UPPER = tar_of({"etc/motd": b"changed\n", "srv/data": content(100_000, 3)})
BASE_BLOB, NO_TAR = gzips.member(BASE), content(50_000, 4)
NO_TAR_BLOB = gzips.member(NO_TAR)
EMPTY_BLOB = gzips.member(b"")


def quiet_logs() -> None:
    """Render records as a service does, without writing them anywhere."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.ReturnLoggerFactory(),
    )


def token_entries(**tokens: str) -> tuple[dict[str, str], ...]:
    """Token settings by role."""
    return tuple(
        {"sha256": hashlib.sha256(token.encode()).hexdigest(), "role": role.partition("_")[0]}
        for role, token in tokens.items()
    )


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def make_layout(folder: Path) -> OciLayout:
    """``image`` (two layers), ``notar`` (a layer that is no tar), ``empty`` (an empty one), ``lying`` (a wrong diff_id),
    ``zstd`` (a compression that is not read)."""
    layout = OciLayout(folder)
    layout.add_image(
        [gzip_layer(BASE_BLOB, BASE), tar_layer(UPPER)], tag="image", config={"config": {"Cmd": ["/bin/sh"]}}
    )
    layout.add_image([gzip_layer(NO_TAR_BLOB, NO_TAR)], tag="notar")
    layout.add_image([gzip_layer(EMPTY_BLOB, b"")], tag="empty")
    layout.add_image([Layer(BASE_BLOB, f"sha256:{'0' * 64}", LAYER_GZIP)], tag="lying")
    zstd = b"\x28\xb5\x2f\xfd" + bytes(50)
    layout.add_image([Layer(zstd, f"sha256:{'0' * 64}", LAYER_GZIP.replace("gzip", "zstd"))], tag="zstd")
    return layout


@dataclass
class Gateway:
    """A running application and a client of it."""

    app: FastAPI
    client: httpx.AsyncClient
    images: str

    @property
    def worker(self) -> Worker:
        worker: Worker = self.app.state.worker
        return worker

    @property
    def services(self) -> Services:
        return self.worker.services

    def body(self, tag: str = "image", **fields: Any) -> dict[str, Any]:
        """A registration of one of the images."""
        return {"source": {"image": f"oci:{self.images}:{tag}"}, **fields}

    async def put(self, name: str, tag: str = "image", **fields: Any) -> httpx.Response:
        return await self.client.put(f"/v1/devices/{name}", json=self.body(tag, **fields))

    async def settle(self) -> None:
        """Wait for all registrations and restorations, and for what the shelf does behind them."""
        registrar = self.services.registrar
        restorations = [each.task for each in registrar._restorations.values()]
        tasks = [*registrar._tasks.values(), *restorations, *self.services.shelf._tasks]
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=60)
            assert not pending

    async def add(self, name: str, tag: str = "image", **fields: Any) -> dict[str, Any]:
        """Register and wait; the device as the API shows it."""
        answer = await self.put(name, tag, **fields)
        assert answer.status_code == 202, answer.text
        await self.settle()
        return (await self.client.get(f"/v1/devices/{name}")).json()

    async def layer(self, name: str = "base", index: int = 0) -> dict[str, Any]:
        """A ready device of one layer's decoded bytes."""
        device = await self.add(name, layout="tar", layer={"index": index})
        assert device["state"] == "ready", device
        return device


@functools.cache
def empty_folder() -> dict[str, bytes]:
    """Files of a data folder with a migrated, empty catalog: making one takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataFolder(Path(folder))
        with prepared(Settings(data_dir=data.root)):
            return {path.name: path.read_bytes() for path in (data.version, data.catalog)}


@functools.cache
def _tls() -> ssl.SSLContext:
    return transport._system_tls()


@asynccontextmanager
async def running(folder: Path, images: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """Start a gateway on a data folder of ``folder``."""
    made = Settings(data_dir=folder / "data", oci_roots=(images.parent,), auth_files=(), **settings)
    if not made.data_dir.exists():
        made.data_dir.mkdir(parents=True)
        for name, content in empty_folder().items():
            (made.data_dir / name).write_bytes(content)
    app = create_app(made)
    tls = _tls()
    with prepared(made), pytest.MonkeyPatch.context() as patch:
        # Reading the certificate authorities takes longer than most tests, too.
        patch.setattr(transport, "_system_tls", lambda: tls)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://gateway",
                trust_env=False,
                verify=False,
            ) as client,
        ):
            yield Gateway(app, client, str(images))


@contextmanager
def served(folder: Path, images: Path, **settings: Any) -> Iterator[tuple[str, Gateway]]:
    """A gateway on a thread of its own, behind a real server on a free port of loopback: its URL and itself.

    Its parts live on the thread's event loop.
    """
    ready: queue.Queue[tuple[str, Gateway, uvicorn.Server]] = queue.Queue()

    async def run() -> None:
        async with running(folder, images, **settings) as gateway:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                server = uvicorn.Server(
                    uvicorn.Config(
                        gateway.app, http="httptools", lifespan="off", log_config=None, log_level="critical"
                    )
                )
                ready.put((f"http://127.0.0.1:{listener.getsockname()[1]}", gateway, server))
                await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    url, gateway, server = ready.get(timeout=60)
    try:
        yield url, gateway
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
