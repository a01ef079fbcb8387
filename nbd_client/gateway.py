"""Control calls to a gateway: upload a file, register an image, wait until it can be read.

httpx here, for there are few of these calls; the bytes of a device come through ``source``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from nbd_client.errors import GatewayError, InvalidOption
from nbd_client.options import ResolvedImage

_POLL_SECONDS = 0.3
_PIECE_BYTES = 1 << 20
_READABLE = frozenset({"ready", "degraded"})

Progress = Callable[[str, int, int | None], None]
"""Phase, done, total (None when unknown)."""


class GatewayClient:
    """Talks to the gateway at ``base_url``. Raises ``GatewayError``."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/") + "/"
        # No proxies nor .netrc of the environment: the gateway is near, and credentials are not for it.
        self._client = httpx.Client(
            base_url=self._base_url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout_seconds,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def look(self) -> httpx.Response:
        """Ask for the list of devices; the answer as it came, whatever it is."""
        return self._send("GET", "v1/devices")

    def upload(self, path: Path) -> str:
        """Make a file known to the gateway; return its digest. What it has already is not sent again."""
        try:
            with path.open("rb") as file:
                digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InvalidOption(f"cannot read {path}: {error.strerror}") from error
        where = f"v1/artifacts/{digest}"
        if self._send("HEAD", where).status_code != httpx.codes.OK:
            size = str(path.stat().st_size)
            self._checked("PUT", where, content=_pieces(path), headers={"Content-Length": size})
        return digest

    def store_credentials(self, name: str, host: str, username: str, password: str) -> None:
        """Have the gateway keep a password for one registry, in place of an earlier one of this name."""
        body = {"hosts": [host], "username": username, "password": password}
        self._checked("PUT", f"v1/credentials/{name}", json=body)

    def resolve(self, source: object) -> ResolvedImage:
        """Ask what the ``source`` of a registration means now."""
        found = self._checked("POST", "v1/images/resolve", json=source).json()
        return ResolvedImage(
            found["pinned"],
            found["digest"],
            found["platform"],
            tuple(layer["digest"] for layer in found["layers"]),
            frozenset(layer["digest"] for layer in found["layers"] if "erofs" in layer["media_type"]),
        )

    def register(self, name: str, specification: Mapping[str, object]) -> None:
        """Have the device made, or find it there; one whose registration failed is made anew.

        A device under this name shows the same bytes whatever else its specification says, so another one is no
        conflict: see :meth:`wait_ready`.
        """
        where = f"v1/devices/{name}"
        known = self._send("GET", where)
        if known.is_success:
            if known.json()["state"] != "failed":
                return
            self._checked("DELETE", where)
        answer = self._send("PUT", where, json=specification)
        if answer.status_code != httpx.codes.CONFLICT:
            self._check("PUT", where, answer)

    def wait_ready(self, name: str, digest: str, progress: Progress) -> str:
        """Wait until the device can be read; return the URL of its data.

        Raises ``GatewayError`` when it is not of the image ``digest``: somebody else made another under this name.
        """
        while True:
            device = self._checked("GET", f"v1/devices/{name}").json()
            if device["state"] in _READABLE:
                if device["image"]["digest"] != digest:
                    raise GatewayError(
                        f"device {name} shows {device['image']['digest']} instead of {digest}; remove it"
                    )
                # Not its data_url: behind a proxy that ends TLS that is the gateway as the proxy reaches it.
                return f"{self._base_url}v1/devices/{name}/data"
            if device["state"] != "indexing":
                raise GatewayError(f"device {name} is {device['state']}: {_reason(device.get('error'))}")
            step = device.get("progress") or {}
            progress(step.get("phase") or "indexing", step.get("done") or 0, step.get("total"))
            time.sleep(_POLL_SECONDS)

    def _checked(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return self._check(method, path, self._send(method, path, **arguments))

    def _check(self, method: str, path: str, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        try:
            problem = response.json()
            detail = problem.get("detail") or problem["title"]
        except (ValueError, LookupError, AttributeError):
            detail = "no explanation"
        raise GatewayError(f"{method} {self._base_url}{path}: {response.status_code}, {detail}")

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise GatewayError(
                f"no answer from the gateway at {self._base_url} ({error}); is BLOCKGATE_URL or --gateway right?"
            ) from error


def _reason(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("detail") or error.get("code") or error)
    return str(error or "no explanation")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
