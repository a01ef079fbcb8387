"""The client commands' way to the gateway."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from gateway.config import client_token, gateway_url
from gateway.errors import BlockgateError, InvalidRequest

Gateway = Annotated[
    str | None,
    typer.Option(
        "--gateway", metavar="URL", help="The gateway; default $BLOCKGATE_URL or http://127.0.0.1:8080"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]


class GatewayRefused(BlockgateError):
    """The gateway answered with a problem; its text is the problem's."""

    code = "gateway_refused"


class GatewayUnreachable(BlockgateError):
    """No gateway answers at the URL."""

    code = "gateway_unreachable"


class Client:
    """Calls of the HTTP API; each raises ``GatewayRefused`` or ``GatewayUnreachable``."""

    def __init__(self, url: str | None) -> None:
        self.url = (url or gateway_url()).rstrip("/")
        token = client_token()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=headers, timeout=httpx.Timeout(30, read=120), trust_env=False
            )
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"--gateway {self.url} is no URL: {error}") from error

    def call(self, method: str, path: str, **options: Any) -> Any:
        """One call; the decoded JSON, or ``None`` for an empty answer."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise GatewayRefused(_problem(response))
        return response.json() if response.content else None

    def upload(self, path: Path) -> str:
        """Upload a file as an artifact; returns its digest."""
        try:
            with path.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
                file.seek(0)
                length = str(os.fstat(file.fileno()).st_size)
                self.call("PUT", f"/v1/artifacts/{digest}", content=file, headers={"content-length": length})
        except OSError as error:
            raise BlockgateError(f"{path} cannot be read: {error.strerror}") from error
        return digest

    def events(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The device's events as (event, data)."""
        try:
            with self._http.stream("GET", f"{device_path(name)}/events") as response:
                if response.is_error:
                    response.read()
                    raise GatewayRefused(_problem(response))
                event = ""
                for line in response.iter_lines():
                    if line.startswith("event: "):
                        event = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        yield event, json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def _unreachable(self, error: httpx.HTTPError) -> GatewayUnreachable:
        return GatewayUnreachable(
            f"no gateway answers at {self.url} ({error}); start one with 'blockgate serve', or name another with --gateway"
        )


def device_path(name: str) -> str:
    """The URL path of a device, whatever its name is typed as."""
    return f"/v1/devices/{quote(name, safe='')}"


@contextmanager
def connect(url: str | None) -> Iterator[Client]:
    """A client for one command."""
    client = Client(url)
    try:
        yield client
    finally:
        client.close()


def _problem(response: httpx.Response) -> str:
    try:
        body = response.json()
        return f"{body['detail']} [{body['code']}]"
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {response.status_code} {response.reason_phrase}"
