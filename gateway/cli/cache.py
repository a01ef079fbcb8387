"""``blockgate cache``: stat, prune."""

from __future__ import annotations

import typer

from blockgate import connect
from gateway.cli.client import Gateway, Json
from gateway.cli.output import dump, human, table

app = typer.Typer(help="Look at the gateway's caches, or empty them.", no_args_is_help=True)


@app.command("stat")
def stat(gateway: Gateway = None, as_json: Json = False) -> None:
    """How full the caches are."""
    with connect(gateway) as client:
        answer = client.cache()
    if as_json:
        dump(answer)
        return
    rows = [
        [
            tier,
            human(answer[tier]["used_bytes"]),
            human(answer[tier]["budget_bytes"]),
            str(answer[tier]["evicted"]),
        ]
        for tier in ("memory", "disk")
    ]
    table(["TIER", "USED", "BUDGET", "EVICTED"], rows)


@app.command("prune")
def prune(gateway: Gateway = None, as_json: Json = False) -> None:
    """Drop everything that can be fetched again."""
    with connect(gateway) as client:
        answer = client.drop_cache()
    if as_json:
        dump(answer)
    else:
        typer.echo(f"{human(answer['freed_bytes'])} freed")
