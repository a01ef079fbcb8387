"""``blockgate device``: add, ls, show, rm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockgate import connect
from blockgate.calls import DeviceUnusable
from blockgate.digests import is_digest
from gateway.cli.client import Gateway, Json
from gateway.cli.output import dump, human, progress, table
from gateway.errors import BlockgateError, InvalidRequest

if TYPE_CHECKING:
    from blockgate.client import Client

app = typer.Typer(help="Register, list, show and remove devices.", no_args_is_help=True)


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
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How long to wait while a fault keeps the gateway from getting further",
        ),
    ] = 60.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until it is ready")] = False,
    gateway: Gateway = None,
    as_json: Json = False,
) -> None:
    """Register a device and wait until it can be read."""
    if layer is not None and blob is not None:
        raise InvalidRequest("give --layer or --blob, not both")
    if blob is not None and not is_digest(blob):
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
            "metadata": _upload(client, metadata),
            "zinfo": _upload(client, zinfo),
            "verify": verify,
        }
        device = client.register(name, body)
        unusable = None
        if not no_wait:
            with progress() as report:
                try:
                    device = client.wait_ready(name, patience_seconds=wait, report=report)
                except DeviceUnusable as error:
                    device, unusable = error.device, error
        if as_json:
            dump(device)
        else:
            _print(device)
        if unusable is not None:
            raise unusable


@app.command("ls")
def ls(gateway: Gateway = None, as_json: Json = False) -> None:
    """List devices."""
    with connect(gateway) as client:
        devices = client.devices()
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
        device = client.device(name)
    if as_json:
        dump(device)
    else:
        _print(device)


@app.command("rm")
def rm(name: str, gateway: Gateway = None, as_json: Json = False) -> None:
    """Remove a device."""
    with connect(gateway) as client:
        client.delete(name)
    if as_json:
        dump({"removed": name})


def _upload(client: Client, path: Path | None) -> str | None:
    try:
        return client.upload(path) if path else None
    except OSError as error:
        raise BlockgateError(f"{path} cannot be read: {error.strerror}") from error


def _state(device: dict[str, Any]) -> str:
    degraded = device["state"] == "ready" and device["health"] == "degraded"
    return "ready, degraded" if degraded else str(device["state"])


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
    for segment in device.get("segments") or ():
        where = f"{segment['offset']}..{segment['offset'] + segment['length']}"
        rows.append([segment["kind"], f"{where} {segment['digest'] or ''}".rstrip()])
    waiting = (device["progress"] or {}).get("error")
    if waiting:
        rows.append(["waits", f"{waiting['detail']} [{waiting['code']}]"])
    if device["error"]:
        rows.append(["error", f"{device['error']['detail']} [{device['error']['code']}]"])
    table(["", ""], rows)
