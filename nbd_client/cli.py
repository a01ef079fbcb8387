"""``blockgate-nbd``: arguments in, exit codes out (0, 1 for a failure, 2 for wrong usage)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nbd_client.errors import InvalidOption, NodeError, UsageError

_MAX_PORT = 65535

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
) -> None:
    """Serve URL over NBD until SIGTERM or SIGINT. The kernel is not needed."""
    from nbd_client.serving import Listen, serve_forever  # noqa: PLC0415  --help stays quick

    listen = Listen(unix.absolute() if unix else None, parse_address(tcp) if tcp else None)
    if listen.unix is None and listen.tcp is None:
        raise InvalidOption("say where to listen: --unix PATH or --tcp HOST:PORT")
    serve_forever(url, listen, export_name=export_name)


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPV6]:PORT``. Raises ``InvalidOption``."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidOption(f"{text}: put an IPv6 address in brackets, as in [::1]:10809")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise InvalidOption(f"{text}: an address looks like 127.0.0.1:10809")
    return host, int(port)


def main() -> None:
    """Entry point."""
    try:
        app()
    except NodeError as error:
        print(f"blockgate-nbd: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main()
