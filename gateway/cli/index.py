"""``blockgate index``: build and show checkpoint tables, offline."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from gateway.cli.client import Json
from gateway.cli.output import dump, human, progress, table
from gateway.errors import BlockgateError, InvalidRequest
from gateway.gzran import zinfo
from gateway.gzran.checkpoints import CheckpointBuilder, Totals

app = typer.Typer(help="Build and show gzip checkpoint tables (zinfo), offline.", no_args_is_help=True)

_READ_BYTES = 1 << 20
_SHOWN = 10


@app.command("build")
def build(
    layer: Annotated[Path, typer.Argument(help="A gzip file", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the table")],
    span_size: Annotated[
        str, typer.Option(help="Decoded bytes between checkpoints (erofs-utils and SOCI: 4MiB)")
    ] = "1MiB",
    as_json: Json = False,
) -> None:
    """Write the table of a layer. Byte-identical to erofs-utils and SOCI at the same span size."""
    try:
        span_bytes = int(TypeAdapter(ByteSize).validate_python(span_size))
    except ValidationError:
        raise InvalidRequest(
            f"--span-size {span_size} is no size; write for example 1MiB or 4194304"
        ) from None
    if not zinfo.WINDOW_BYTES <= span_bytes <= zinfo.MAX_SPAN_BYTES:
        raise InvalidRequest(
            f"--span-size must be between {zinfo.WINDOW_BYTES} and {zinfo.MAX_SPAN_BYTES} bytes"
        )
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        totals, count = _build(layer, temporary, span_bytes)
        temporary.rename(output)
    except OSError as error:
        raise BlockgateError(f"{output}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    facts = {
        "zinfo": str(output),
        "checkpoints": count,
        "span_size": span_bytes,
        "compressed_size": totals.compressed_size,
        "uncompressed_size": totals.uncompressed_size,
        "members": totals.members,
    }
    if as_json:
        dump(facts)
    else:
        print(
            f"{output}: {count} checkpoints, {human(totals.compressed_size)} of gzip in {totals.members} member(s), "
            f"{human(totals.uncompressed_size)} decompressed",
            file=sys.stderr,
        )


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A zinfo file", exists=True, dir_okay=False)],
    as_json: Json = False,
) -> None:
    """Check a table and show its checkpoints."""
    parsed = zinfo.parse(file.read_bytes())
    points = [{"in": p.in_offset, "out": p.out_offset, "bits": p.bits} for p in parsed]
    if as_json:
        dump({"version": parsed.version, "span_size": parsed.span_size, "checkpoints": points})
        return
    print(f"version {parsed.version}, span size {human(parsed.span_size)}, {len(points)} checkpoints")
    shown = points if len(points) <= 2 * _SHOWN else points[:_SHOWN]
    table(
        ["#", "IN", "OUT", "BITS"],
        [[str(i), str(p["in"]), str(p["out"]), str(p["bits"])] for i, p in enumerate(shown)],
    )
    if len(shown) < len(points):
        print(f"… {len(points) - len(shown)} more; --json shows all")


def _build(layer: Path, target: Path, span_bytes: int) -> tuple[Totals, int]:
    count = 0
    size = layer.stat().st_size
    with layer.open("rb") as source, target.open("wb") as file, progress() as report:
        file.write(zinfo.header(0, span_bytes))

        def checkpoint(point: zinfo.Checkpoint, window: bytes) -> None:
            nonlocal count
            count += 1
            file.write(zinfo.record(point, window))

        builder = CheckpointBuilder(span_bytes, lambda _view: None, checkpoint)
        done = 0
        while piece := source.read(_READ_BYTES):
            builder.feed(piece)
            done += len(piece)
            report("indexing", done, size)
        totals = builder.finish()
        file.seek(0)
        file.write(zinfo.header(count, span_bytes))
    return totals, count
