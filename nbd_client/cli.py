"""``blockgate-nbd``: arguments in, exit codes out (0, 1 for a failure, 2 for wrong usage)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from blockgate.calls import GatewayWaits
from blockgate.environment import DEFAULT_URL, gateway_token
from nbd_client.control import DEFAULT_RUN_DIR, ask, ensure_agent, running
from nbd_client.errors import BlockgateError, InvalidOption, UsageError
from nbd_client.mount import PATIENCE_SECONDS, Via, fuse_mountpoints, mount_source, subtype
from nbd_client.mount import umount as undo
from nbd_client.options import metrics_address, parse_address, parse_options

app = typer.Typer(
    name="blockgate-nbd",
    help="Byte ranges of a URL as a block device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Byte ranges of a URL as a block device."""


@app.command()
def serve(
    url: Annotated[str, typer.Argument(help="Any URL that answers Range requests.")],
    unix: Annotated[Path | None, typer.Option(help="Listen on this unix socket.")] = None,
    tcp: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Listen on this address.")] = None,
    export_name: Annotated[str, typer.Option(help="Name of the export besides the empty one.")] = "",
    connections: Annotated[int | None, typer.Option(help="HTTP connections at a time.")] = None,
    cache: Annotated[str | None, typer.Option(help="Memory for what was read, as 64MiB.")] = None,
    readahead: Annotated[str | None, typer.Option(help="Largest readahead, as 8MiB; 0: none.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Prometheus metrics; a port alone is on loopback."),
    ] = None,
) -> None:
    """Serve URL over NBD until SIGTERM or SIGINT. The kernel is not needed."""
    from nbd_client.config import load  # noqa: PLC0415  --help stays quick
    from nbd_client.serving import Listen, serve_forever  # noqa: PLC0415

    listen = Listen(unix.absolute() if unix else None, parse_address(tcp) if tcp else None)
    if listen.unix is None and listen.tcp is None:
        raise InvalidOption("say where to listen: --unix PATH or --tcp HOST:PORT")
    settings = load(connections=connections, cache=cache, readahead=readahead, metrics=metrics)
    where = metrics_address(settings.metrics) if settings.metrics else None
    serve_forever(url, listen, export_name=export_name, options=settings.source_options(), metrics=where)


_RunDir = Annotated[Path, typer.Option(envvar="BLOCKGATE_NBD_RUN_DIR", help="The agent's folder.")]
_Gateway = Annotated[str, typer.Option(envvar="BLOCKGATE_URL", help="The gateway that reads images.")]
_Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def attach(
    url: Annotated[str, typer.Argument(help="Any URL that answers Range requests.")],
    device: Annotated[str | None, typer.Option(help="/dev/nbdN; by default the first free one.")] = None,
    run_dir: _RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Make URL a block device; prints its path."""
    ensure_agent(run_dir)
    print(ask(run_dir, "attach", url=url, device=device))


@app.command()
def detach(
    device: Annotated[str, typer.Argument(help="/dev/nbdN")],
    force: Annotated[bool, typer.Option("--force", help="Even while mounted: all its I/O fails.")] = False,
    run_dir: _RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Take a device down."""
    ensure_agent(run_dir)
    ask(run_dir, "detach", device=device, force=force)


@app.command("list")
def list_devices(as_json: _Json = False, run_dir: _RunDir = DEFAULT_RUN_DIR) -> None:
    """Show what is attached, and what is mounted without the kernel's driver."""
    if not running(run_dir) and not any(run_dir.glob("*.device.json")):
        devices = []
    else:
        ensure_agent(run_dir)
        devices = ask(run_dir, "list")
    mountpoints = fuse_mountpoints(run_dir)
    for device in devices:
        device["mountpoint"] = device["mountpoint"] or mountpoints.get(device["device"])
    if as_json:
        print(json.dumps(devices, indent=1))
        return
    for device in devices:
        mounted = f" on {device['mountpoint']}" if device["mountpoint"] else ""
        print(f"{device['device']}  {device['state']}  {device['size']}  {device['url']}{mounted}")


@app.command()
def reattach(
    device: Annotated[str | None, typer.Argument(help="/dev/nbdN")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every recorded device.")] = False,
    run_dir: _RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Bring parked devices back; starting the agent already does it for all of them."""
    if (device is None) != every:
        raise InvalidOption("name one device, or say --all")
    ensure_agent(run_dir)
    ask(run_dir, "recovered")
    for one in ask(run_dir, "list"):
        if (every or one["device"] == device) and one["state"] != "attached":
            ask(run_dir, "reattach", device=one["device"])
    if device is not None:
        ask(run_dir, "show", device=device)


@app.command()
def mount(
    source: Annotated[str, typer.Argument(metavar="URL|IMAGE", help="A URL of an EROFS image, or an image.")],
    mountpoint: Annotated[Path, typer.Argument(help="A folder.")],
    option: Annotated[
        list[str] | None, typer.Option("-o", help="Mount options; oci.* as mount.erofs.")
    ] = None,
    via: Annotated[
        Via, typer.Option(help="The kernel's NBD driver, or nbdfuse and a loop device.")
    ] = Via.auto,
    gateway: _Gateway = DEFAULT_URL,
    kind: Annotated[
        str | None,
        typer.Option("-t", metavar="erofs[.SUBTYPE]", help="As mount.erofs: nbd or fuse, as --via."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How long to wait while a fault keeps the gateway from getting further.",
        ),
    ] = PATIENCE_SECONDS,
    run_dir: _RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Mount an image, or the EROFS image behind a URL, read-only."""
    if kind is not None:
        via = subtype(kind, via)
    options = parse_options(",".join(option or []))
    way = mount_source(
        source, mountpoint, options, via=via, gateway=gateway, run_dir=run_dir, patience_seconds=wait
    )
    print(f"mounted {source} on {mountpoint} ({way})")


@app.command()
def umount(
    mountpoint: Annotated[Path, typer.Argument(help="A folder that mount mounted on.")],
    run_dir: _RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Unmount, and detach what was attached for it."""
    undo(mountpoint, run_dir=run_dir)


@app.command()
def doctor(gateway: _Gateway = DEFAULT_URL, run_dir: _RunDir = DEFAULT_RUN_DIR) -> None:
    """Say what works on this machine, and what to do about the rest."""
    from nbd_client.doctor import can_mount, examine  # noqa: PLC0415  --help stays quick

    findings = list(examine(run_dir, gateway, token=gateway_token()))
    for finding in findings:
        advice = f" -> {finding.advice}" if finding.advice else ""
        print(f"{'ok' if finding.good else '--'}  {finding.subject}: {finding.text}{advice}")
    if not can_mount(findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point."""
    try:
        app()
    except BlockgateError as error:
        print(f"blockgate-nbd: {error}", file=sys.stderr)
        if isinstance(error, GatewayWaits):
            sys.exit(os.EX_TEMPFAIL)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main()
