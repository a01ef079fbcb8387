"""The targets that this project sets itself, measured: python -m benchmarks [--quick] [--target N]... [--layer FILE.tar.gz].

Each number is a ratio of medians from runs that took turns on this machine, or a count. Nothing here is a test: a busy or a
strange machine gives other numbers, and a missed target changes no exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import cold, first_file, hot, inflate, ingest, observing
from benchmarks.layers import Layer, choose
from benchmarks.report import Row, show
from benchmarks.servers import Gateway, Registry, gateway, registry

TARGETS = (1, 2, 3, 4, 6, 8, 9, 10)
_DELAY_SECONDS = 0.010


@dataclass
class Scene:
    """The layer, in a registry nearby and in one 10 ms away, and a gateway that has it as a device from each."""

    layer: Layer
    folder: Path
    near: Registry
    far: Registry
    gateway: Gateway


@contextlib.contextmanager
def set_up(layer: Layer, folder: Path) -> Iterator[Scene]:
    with (
        registry(layer, folder / "near") as near,
        registry(layer, folder / "far", delay_seconds=_DELAY_SECONDS) as far,
        gateway(folder / "gateway") as running,
    ):
        running.register("layer", near.image)
        running.register("far", far.image)
        yield Scene(layer, folder, near, far, running)


def measure(target: int, scene: Scene, *, quick: bool) -> list[Row]:
    layer, serving, folder = scene.layer, scene.gateway, scene.folder
    rounds, fewer, seconds = (3, 3, 1) if quick else (9, 5, 3)
    measurements: dict[int, Callable[[], list[Row]]] = {
        1: lambda: inflate.against_targets(layer.blob.read_bytes(), rounds),
        2: lambda: cold.random_reads(serving, scene.near, layer, reads=60 if quick else 200),
        3: lambda: [
            *cold.whole_layer(serving, scene.near, layer, "layer", "no delay", rounds),
            *cold.whole_layer(serving, scene.far, layer, "far", "10 ms", rounds),
        ],
        4: lambda: hot.hot_ranges(serving, layer, "layer", folder, seconds=seconds, rounds=fewer),
        6: lambda: [
            *ingest.registration(scene.near, layer, folder, rounds=fewer),
            *ingest.huge_registration(layer, folder, size=1 << 30 if quick else 4 << 30),
        ],
        8: lambda: first_file.first_file(layer, folder, rounds=1 if quick else 3),
        9: lambda: cold.crowd(serving, scene.far, layer, "far", clients=1000),
        10: lambda: observing.watching(layer, scene.near, folder, seconds=seconds, rounds=fewer),
    }
    return measurements[target]()


def main() -> None:
    arguments = argparse.ArgumentParser(prog="benchmarks", description=__doc__.partition("\n")[0])
    arguments.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    arguments.add_argument(
        "--target",
        type=int,
        action="append",
        choices=TARGETS,
        help="only this one; may be given several times",
    )
    arguments.add_argument("--layer", type=Path, help="a tar.gz to measure with instead of a Debian root")
    options = arguments.parse_args()
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="blockgate-bench-") as folder:
        console.print("Preparing the layer …")
        layer = choose(options.layer, Path(folder))
        console.print(f"{layer.name}: {layer.size / 1e6:.0f} MB, {layer.tar_size / 1e6:.0f} MB decompressed")
        with set_up(layer, Path(folder)) as scene:
            for target in options.target or TARGETS:
                console.print(f"Target {target} …")
                try:
                    rows += measure(target, scene, quick=options.quick)
                except pytest.skip.Exception as missing:
                    console.print(f"[yellow]target {target} is not measured: {missing}[/]")
    show(rows, [*inflate.NOTES, *cold.NOTES, *hot.NOTES, *ingest.NOTES, *first_file.NOTES, *observing.NOTES])


if __name__ == "__main__":
    main()
