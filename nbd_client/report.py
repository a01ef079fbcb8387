"""Tell gateways what this node has attached of theirs: one small POST each, every few seconds.

It is for people who look at a dashboard, so it may fail: it has connections of its own, a bound on everything, and says once
that a gateway does not listen. Reads never wait for it. Only URLs of a gateway's devices are reported, and only to where
they came from, which is where the token belongs, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from nbd_client import __version__
from nbd_client.errors import InvalidUrl
from nbd_client.source.pool import tls_context
from nbd_client.source.url import Endpoint, parse

log = logging.getLogger(__name__)

REPORT_SECONDS = 10.0
NODE_NAME = r"^[a-z0-9][a-z0-9._-]{0,127}$"

_DATA_PATH = re.compile(r"(?P<prefix>.*)/v1/devices/(?P<name>[a-z0-9][a-z0-9._-]{0,127})/data")
_TIMEOUT_SECONDS = 5.0
_MAX_DEVICES = 1000
_MAX_TEXT = 500
_OK = range(200, 300)


@dataclass(frozen=True, slots=True)
class Attached:
    """One device or export of this node. ``node_device`` is /dev/nbdN or a socket's path."""

    url: str
    node_device: str
    mountpoint: str | None
    state: str
    read_bytes: int
    errors: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where reports go: ``prefix`` is what stands before /v1 in its URLs."""

    endpoint: Endpoint
    authority: str
    prefix: str


def node_name(host: str = "") -> str:
    """A name that gateways take, made of the host's. PURE but for the default."""
    text = re.sub(r"[^a-z0-9._-]+", "-", (host or platform.node()).lower()).lstrip("._-")
    return text[:128] or "node"


def reports(attached: Iterable[Attached]) -> dict[Gateway, list[dict[str, object]]]:
    """Devices by the gateway that they are of, as its API wants them; other URLs are left out. PURE."""
    found: dict[Gateway, list[dict[str, object]]] = {}
    for one in attached:
        try:
            target = parse(one.url)
        except InvalidUrl:
            continue
        match = _DATA_PATH.fullmatch(target.path)
        if match is None:
            continue
        devices = found.setdefault(Gateway(target.endpoint, target.authority, match["prefix"]), [])
        if len(devices) < _MAX_DEVICES:
            fields = asdict(one)
            del fields["url"]
            cut = {
                key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in fields.items()
            }
            devices.append({"name": match["name"], **cut})
    return found


class Reporter:
    """Reports what ``attached`` gives, under ``name``."""

    def __init__(
        self, name: str, attached: Callable[[], Iterable[Attached]], *, token: str | None = None
    ) -> None:
        self._name = name
        self._attached = attached
        self._token = token
        self._told: set[Gateway] = set()
        self._deaf: set[Gateway] = set()

    async def run(self, every_seconds: float) -> None:
        """For ever."""
        while True:
            await self.tell()
            await asyncio.sleep(every_seconds)

    async def tell(self) -> None:
        """One round. A gateway whose last device went is told that there is none, once. Raises nothing."""
        try:
            found = reports(self._attached())
        except OSError as error:  # of reading the mounts
            log.debug("nothing is reported: %s", error)
            return
        gone: Mapping[Gateway, list[dict[str, object]]] = {gateway: [] for gateway in self._told - set(found)}
        for gateway, devices in {**found, **gone}.items():
            failure = await self._post(gateway, devices)
            if failure is None:
                self._deaf.discard(gateway)
            elif gateway not in self._deaf:
                self._deaf.add(gateway)
                log.info("%s takes no report of this node: %s", gateway.authority, failure)
        self._told = set(found)
        self._deaf &= self._told

    async def _post(self, gateway: Gateway, devices: list[dict[str, object]]) -> str | None:
        """What went wrong, if anything did."""
        body = json.dumps({"version": __version__, "devices": devices}).encode()
        lines = [
            f"POST {gateway.prefix}/v1/nodes/{self._name}/report HTTP/1.1",
            f"Host: {gateway.authority}",
            f"User-Agent: blockgate-nbd/{__version__}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if self._token is not None:
            lines.append(f"Authorization: Bearer {self._token}")
        request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                status = await _exchange(gateway.endpoint, request)
        except TimeoutError:
            return f"no answer within {_TIMEOUT_SECONDS:.0f} s"
        except (OSError, ValueError, asyncio.LimitOverrunError, asyncio.IncompleteReadError) as error:
            return str(error) or type(error).__name__
        return None if status in _OK else f"it answered {status}"


async def _exchange(endpoint: Endpoint, request: bytes) -> int:
    """Send; return the answer's status. Raises ``OSError``, or ``ValueError`` for what is no HTTP."""
    if endpoint.unix_path is not None:
        reader, writer = await asyncio.open_unix_connection(endpoint.unix_path)
    else:
        context = tls_context() if endpoint.tls else None
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
    try:
        writer.write(request)
        await writer.drain()
        version, _, rest = (await reader.readuntil(b"\r\n")).partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError("an answer that is no HTTP")
        return int(rest[:3])
    finally:
        writer.transport.abort()
