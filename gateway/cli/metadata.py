"""``blockgate metadata``: EROFS metadata of layers, offline."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from gateway.cli.client import Json
from gateway.cli.output import dump, human, progress
from gateway.errors import BlockgateError, CorruptStream, InvalidLayer
from gateway.ingest.contents import Contents
from gateway.ingest.decompress import decompressed
from gateway.ingest.metadata import build_file

app = typer.Typer(help="Build EROFS metadata, offline.", no_args_is_help=True)


@app.command("build")
def build(
    layers: Annotated[
        list[Path], typer.Argument(help="Layers, base first; .tar or .tar.gz", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the metadata")],
    as_json: Json = False,
) -> None:
    """Merge layers and write the metadata of their device: metadata, then each layer's tar, padded to 4096 bytes."""
    with TemporaryDirectory(prefix="blockgate-") as folder, progress() as report:
        tocs = []
        for number, layer in enumerate(layers):
            toc = Path(folder) / f"{number}.toc"
            contents = Contents(toc)
            size = layer.stat().st_size
            try:
                for done, piece in decompressed(layer):
                    contents.feed(memoryview(piece))
                    report(f"reading {layer.name}", done, size)
            except (zlib.error, CorruptStream) as error:
                raise InvalidLayer(f"{layer}: {error}") from error
            except OSError as error:
                raise BlockgateError(f"{layer}: {error.strerror}") from error
            finally:
                if sys.exception() is not None:
                    contents.close()
            refusal = contents.finish()
            if refusal is not None:
                raise InvalidLayer(f"{layer}: {refusal}")
            tocs.append(toc)
        try:
            built = build_file(tocs, output)
        except OSError as error:
            raise BlockgateError(f"{output}: {error.strerror}") from error
    facts = {
        "metadata": str(output),
        "size": built.size,
        "layer_offsets": list(built.layer_offsets),
        **built.counts(),
    }
    if as_json:
        dump(facts)
    else:
        print(
            f"{output}: {human(built.size)} for {built.files} files and {built.directories} directories; layers at "
            + ", ".join(map(str, built.layer_offsets)),
            file=sys.stderr,
        )
