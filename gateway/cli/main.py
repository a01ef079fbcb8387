"""Entry point: the command tree, and how errors become exit codes (1 a failure, 2 wrong usage, 75 not yet)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from blockgate.calls import GatewayWaits
from gateway import __version__
from gateway.cli import cache, demo, device, doctor, index, metadata, serve
from gateway.cli.output import fail
from gateway.errors import BlockgateError, ConfigurationError, InvalidReference, InvalidRequest

app = typer.Typer(
    name="blockgate",
    help="Read container images as block devices without pulling them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("serve")(serve.serve)
app.add_typer(device.app, name="device")
app.add_typer(index.app, name="index")
app.add_typer(metadata.app, name="metadata")
app.add_typer(cache.app, name="cache")
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)

_USAGE = (ConfigurationError, InvalidRequest, InvalidReference)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"blockgate {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version_flag: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit")
    ] = False,
) -> None:
    """Read container images as block devices without pulling them."""


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        app()
    except SystemExit as ending:
        # Typer's own: --help, wrong usage (2), interrupted (130), typer.Exit.
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BlockgateError as error:
        fail(error.detail)
        if isinstance(error, GatewayWaits):
            return os.EX_TEMPFAIL
        return 2 if isinstance(error, _USAGE) else 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
