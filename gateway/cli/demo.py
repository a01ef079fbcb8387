"""``blockgate demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.demo.show import DemoFailed, run
from gateway.errors import BlockgateError


def demo(
    folder: Annotated[Path, typer.Option(help="Where to put the sample and the gateway's data")] = Path(
        ".demo"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one")] = 8080,
    once: Annotated[
        bool, typer.Option("--once", help="End after the comparison instead of staying up")
    ] = False,
) -> None:
    """Show blockgate at work on this machine's own files, without a network."""
    try:
        run(folder.absolute(), port, keep_running=not once)
    except DemoFailed as error:
        raise BlockgateError(str(error)) from error
