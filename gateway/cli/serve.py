"""``blockgate serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.config import load
from gateway.logs import configure


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for a free one [default: 8080]")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for catalog, indexes, artifacts and cache")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file [default: /etc/blockgate/config.toml if it exists]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve [default: 1]")] = None,
    oci_root: Annotated[
        list[Path] | None, typer.Option(help="Folder below which OCI layouts may be registered; repeatable")
    ] = None,
) -> None:
    """Run the gateway."""
    from gateway.api import server  # noqa: PLC0415 - a second of imports that other commands need not pay

    settings = load(
        config,
        host=host,
        port=port,
        data_dir=data_dir.absolute() if data_dir else None,
        workers=workers,
        oci_roots=tuple(root.absolute() for root in oci_root) if oci_root else None,
    )
    configure(settings.log_format, settings.log_level)
    raise typer.Exit(server.serve(settings))
