"""``blockgate device``: add, ls, show, rm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.client import Client, Gateway, Json, connect, device_path
from gateway.cli.output import dump, human, progress, table
from gateway.errors import BlockgateError, InvalidRequest

app = typer.Typer(help="Register, list, show and remove devices.", no_args_is_help=True)

# Devices of one call; the most that the gateway gives.
_PAGE = 1000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Name of the device")],
    image: Annotated[str, typer.Argument(help="Image reference, or oci:DIR[:TAG]")],
    platform: Annotated[str, typer.Option(help="Platform, os/arch[/variant]")] = "linux/amd64",
    layer: Annotated[int | None, typer.Option(help="One layer, by its number (0 is the base)")] = None,
    blob: Annotated[str | None, typer.Option(help="One layer, by its digest")] = None,
    layout: Annotated[str, typer.Option(help="filesystem, tar or raw")] = "filesystem",
    metadata: Annotated[Path | None, typer.Option(help="EROFS metadata to put in front", exists=True)] = None,
    zinfo: Annotated[
        Path | None, typer.Option(help="Checkpoint table to use for the layer", exists=True)
    ] = None,
    verify: Annotated[str, typer.Option(help="before or background")] = "before",
    insecure: Annotated[bool, typer.Option("--insecure", help="Speak plain HTTP to the registry")] = False,
    credentials: Annotated[
        str | None,
        typer.Option(help="Name of credentials that the gateway was configured with, or has stored"),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until it is ready")] = False,
    gateway: Gateway = None,
    as_json: Json = False,
) -> None:
    """Register a device and wait until it can be read."""
    if layer is not None and blob is not None:
        raise InvalidRequest("give --layer or --blob, not both")
    if blob is not None and not _DIGEST.fullmatch(blob):
        raise InvalidRequest(f"--blob {blob} is not of the form sha256:<64 hexadecimal digits>")
    with connect(gateway) as client:
        body = {
            "source": {
                "image": image,
                "platform": platform,
                "insecure": insecure,
                "credentials": credentials,
            },
            "layout": layout,
            "layer": {"index": layer}
            if layer is not None
            else {"digest": blob}
            if blob is not None
            else None,
            "metadata": client.upload(metadata) if metadata else None,
            "zinfo": client.upload(zinfo) if zinfo else None,
            "verify": verify,
        }
        device = client.call("PUT", device_path(name), json=body)
        if not no_wait:
            device = _wait(client, device)
        if as_json:
            dump(device)
        else:
            _print(device)
        if device["state"] in ("failed", "quarantined"):
            raise BlockgateError(f"device {name} is {device['state']}: {device['error']['detail']}")


@app.command("ls")
def ls(gateway: Gateway = None, as_json: Json = False) -> None:
    """List devices."""
    with connect(gateway) as client:
        devices = list(_all(client))
    if as_json:
        dump(devices)
        return
    rows = [
        [d["name"], _state(d), d["layout"], human(d["size"]), d["image"]["reference"] if d["image"] else "-"]
        for d in devices
    ]
    table(["NAME", "STATE", "LAYOUT", "SIZE", "IMAGE"], rows)


@app.command("show")
def show(name: str, gateway: Gateway = None, as_json: Json = False) -> None:
    """Show a device."""
    with connect(gateway) as client:
        device = client.call("GET", device_path(name))
    if as_json:
        dump(device)
    else:
        _print(device)


@app.command("rm")
def rm(name: str, gateway: Gateway = None, as_json: Json = False) -> None:
    """Remove a device."""
    with connect(gateway) as client:
        client.call("DELETE", device_path(name))
    if as_json:
        dump({"removed": name})


def _all(client: Client) -> Iterator[dict[str, Any]]:
    """Every device, page by page."""
    query: dict[str, Any] = {"limit": _PAGE}
    while True:
        page = client.call("GET", "/v1/devices", params=query)
        yield from page["devices"]
        if page["next"] is None:
            return
        query["cursor"] = page["next"]


def _state(device: dict[str, Any]) -> str:
    return f"{device['state']}, degraded" if device["health"] == "degraded" else str(device["state"])


def _wait(client: Client, device: dict[str, Any]) -> dict[str, Any]:
    """Follow the device's events until it is readable or has failed."""
    if device["state"] != "indexing":
        return device
    with progress() as report:
        for event, data in client.events(device["name"]):
            if event == "gone":
                raise BlockgateError(f"device {device['name']} was removed meanwhile")
            device = data
            if device["state"] != "indexing":
                break
            if shown := device["progress"]:
                why = f": {shown['error']['detail']}" if shown["error"] else ""
                report(shown["phase"] + why, shown["done"], shown["total"])
    whole: dict[str, Any] = client.call("GET", device_path(device["name"]))
    return whole


def _print(device: dict[str, Any]) -> None:
    rows = [
        ["name", device["name"]],
        ["state", f"{_state(device)}, {device['verification']}"],
        ["size", f"{device['size']} bytes ({human(device['size'])})" if device["size"] is not None else "-"],
        ["data", device["data_url"]],
    ]
    if device["image"]:
        rows += [["image", device["image"]["reference"]], ["digest", device["image"]["digest"]]]
        rows += [["platform", device["image"]["platform"]]]
    if contents := device.get("contents"):
        rows += [
            ["files", f"{contents['files']} ({human(contents['bytes'])})"],
            ["directories", str(contents["directories"])],
        ]
    config = device.get("image_config") or {}
    for key in ("Entrypoint", "Cmd", "WorkingDir", "User", "Env"):
        if config.get(key):
            rows.append(
                [key.lower(), " ".join(config[key]) if isinstance(config[key], list) else str(config[key])]
            )
    if device["etag"]:
        rows.append(["etag", device["etag"]])
    for segment in device["segments"]:
        where = f"{segment['offset']}..{segment['offset'] + segment['length']}"
        rows.append([segment["kind"], f"{where} {segment['digest'] or ''}".rstrip()])
    if device["progress"] and (waits := device["progress"]["error"]):
        rows.append(["waits", f"{waits['detail']} [{waits['code']}]"])
    if device["error"]:
        rows.append(["error", f"{device['error']['detail']} [{device['error']['code']}]"])
    table(["", ""], rows)
