"""Options that the client commands share; ``blockgate.connect`` is their way to the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

Gateway = Annotated[
    str | None,
    typer.Option(
        "--gateway", metavar="URL", help="The gateway; default $BLOCKGATE_URL or http://127.0.0.1:8080"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]
