"""``blockgate doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from blockgate import connect
from blockgate.calls import GatewayUnreachable
from gateway.cli.client import Gateway, Json
from gateway.cli.output import dump, human, table
from gateway.config import Settings, load
from gateway.errors import BlockgateError

_LOW_BYTES = 1 << 30
_MIN_FILES = 4096


class Check(NamedTuple):
    """One look at the machine."""

    name: str
    ok: bool
    detail: str


def doctor(
    config: Annotated[Path | None, typer.Option(help="TOML file to check")] = None,
    gateway: Gateway = None,
    as_json: Json = False,
) -> None:
    """Look at what the gateway needs; exit status 1 when something that it cannot do without is missing."""
    checks = list(_checks(config, gateway))
    if as_json:
        dump([check._asdict() for check in checks])
    else:
        table(
            ["", "CHECK", ""],
            [["ok" if check.ok else "MISSING", check.name, check.detail] for check in checks],
        )
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _checks(config: Path | None, url: str | None) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0])
    yield _try("libz", _libz)
    yield _try("isal", _isal)
    try:
        settings = load(config)
    except BlockgateError as error:
        yield Check("configuration", ok=False, detail=error.detail)
        return
    yield Check("configuration", ok=True, detail="valid")
    yield _data_dir(settings)
    yield _files()
    yield _gateway(url)


def _try(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, ok=True, detail=look())
    except (BlockgateError, ImportError, OSError) as error:
        return Check(name, ok=False, detail=str(error))


def _libz() -> str:
    from gateway.gzran import libz  # noqa: PLC0415 - loading it is the check

    return f"version {libz.load().zlibVersion().decode()}, for checkpoints"


def _isal() -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return f"version {version('isal')}, for inflating"


def _data_dir(settings: Settings) -> Check:
    folder = settings.data_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Check(
            "data folder", ok=False, detail=f"{existing} is not writable; choose another with --data-dir"
        )
    free = shutil.disk_usage(existing).free
    note = "" if free > _LOW_BYTES else "; little room, reads will often go to the registry"
    return Check("data folder", ok=True, detail=f"{folder}, {human(free)} free{note}")


def _files() -> Check:
    import resource  # noqa: PLC0415

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _MIN_FILES:
        return Check(
            "open files",
            ok=True,
            detail=f"limit {soft}: enough for some hundred clients; raise it with ulimit -n",
        )
    return Check("open files", ok=True, detail=f"limit {soft}")


def _gateway(url: str | None) -> Check:
    try:
        with connect(url) as client:
            where = client.url
            answer = client.look("/readyz")
        status = json.loads(answer.body)["status"]
    except GatewayUnreachable as error:
        return Check("gateway", ok=True, detail=error.detail)
    except (ValueError, KeyError, TypeError):
        return Check("gateway", ok=False, detail=f"what answers at {where} is no gateway")
    return Check("gateway", ok=answer.good, detail=f"{where}: {status}")
