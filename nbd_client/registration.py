"""An image by its reference: have a gateway read it, and wait until it can be read.

httpx here, through ``blockgate.client``, for there are few of these calls; the bytes of a device come through ``source``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from blockgate.calls import GatewayRefused, Json, Report
from blockgate.client import Client
from blockgate.names import data_path
from nbd_client.errors import GatewayError, InvalidOption
from nbd_client.options import (
    MountOptions,
    ResolvedImage,
    credentials_name,
    device_name,
    pinned,
    registry_of,
    specification,
)


def register_image(image: str, options: MountOptions, client: Client, *, patience_seconds: float) -> str:
    """Have the gateway read an image; the URL of the device. Asked again, it is the device that exists.

    Raises ``GatewayClientError``, ``InvalidOption``, and ``GatewayError`` when somebody else made another device under
    this name.
    """
    metadata = _upload(client, options.local_meta)
    zinfo = _upload(client, options.zinfo)
    credentials = _store_credentials(client, image, options)
    wanted = specification(image, options, metadata, zinfo, credentials)
    found = _resolved(client.resolve(wanted["source"]))
    wanted = pinned(wanted, found)
    name = device_name(wanted, found)
    register(client, name, wanted)
    with waiting(image) as report:
        device = client.wait_ready(name, patience_seconds=patience_seconds, report=report)
    if device["image"]["digest"] != found.digest:
        raise GatewayError(
            f"device {name} shows {device['image']['digest']} instead of {found.digest}; remove it"
        )
    # Not its data_url: behind a proxy that ends TLS that is the gateway as the proxy reaches it.
    return f"{client.url}{data_path(name)}"


def register(client: Client, name: str, specification: Mapping[str, object]) -> None:
    """Have the device made, or find it there; one whose registration failed is tried again.

    A device under this name shows the same bytes whatever else its specification says, so that another one is no conflict.
    """
    try:
        if client.device(name)["state"] != "failed":
            return
    except GatewayRefused as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
    try:
        client.register(name, specification)
    except GatewayRefused as error:
        if error.status != HTTPStatus.CONFLICT:
            raise


def _upload(client: Client, path: str | None) -> str | None:
    try:
        return client.upload(Path(path)) if path else None
    except OSError as error:
        raise InvalidOption(f"cannot read {path}: {error.strerror}") from error


def _resolved(found: Json) -> ResolvedImage:
    return ResolvedImage(
        found["pinned"],
        found["digest"],
        found["platform"],
        tuple(layer["digest"] for layer in found["layers"]),
        frozenset(layer["digest"] for layer in found["layers"] if "erofs" in layer["media_type"]),
    )


def _store_credentials(client: Client, image: str, options: MountOptions) -> str | None:
    if options.username is None or options.password is None:
        return None
    host = registry_of(image)
    name = credentials_name(host, options.username)
    client.store_credentials(name, [host], options.username, options.password)
    return name


@contextmanager
def waiting(title: str) -> Iterator[Report]:
    """A progress bar on a terminal, a plain line per phase otherwise."""
    if sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda phase, done, total: bar.update(
                task, description=f"{title}: {phase}", completed=done, total=total or None
            )
        return
    seen: set[str] = set()

    def line(phase: str, _done: int, _total: int) -> None:
        if phase not in seen:
            seen.add(phase)
            sys.stderr.write(f"{title}: {phase}\n")

    yield line
