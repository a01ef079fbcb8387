"""Layers of every encoder that people use, as ``tar`` and as ``filesystem`` devices, over HTTP."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Figure, padded, random_ranges, span_edges
from tests.support.gateway import Gateway, around
from tests.support.gzips import PROGRAMS, PURE
from tests.support.ocilayout import OciLayout, gzip_layer

_FLAVOURS = [
    *(pytest.param(name, make, id=name) for name, make in PURE.items()),
    *(pytest.param(name, make, id=name, marks=pytest.mark.real) for name, make in PROGRAMS.items()),
]
_MEMBER_BYTES = {"members of 64 KiB": 64 << 10, "members of 1 MiB": 1 << 20, "pigz -i": 128 << 10}
_RANDOM = {"tar": 700, "filesystem": 300}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> OciLayout:
    return OciLayout(tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, layout: OciLayout) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with Gateway(folder, oci_roots=[layout.folder], settings={"span_size": "262144"}) as gateway:
        yield gateway


@pytest.mark.parametrize(("flavour", "make"), _FLAVOURS)
def test_every_range_is_that_of_the_decompressed_tar(
    flavour: str, make, gateway: Gateway, layout: OciLayout, small_tar: bytes, figure: Figure
) -> None:
    tag = flavour.replace(" ", "").replace("-", "").lower()
    layout.add_image([gzip_layer(make(small_tar), small_tar)], tag=tag)
    image = {"source": {"image": f"oci:{layout.folder}:{tag}"}}
    compared = 0
    for kind, count in _RANDOM.items():
        device = gateway.register(f"{tag}-{kind}", {**image, "layout": kind, "layer": {"index": 0}})
        assert device["state"] == "ready", device["error"]
        assert device["verification"] == "verified"
        layer = next(segment for segment in device["segments"] if segment["kind"] == "gzip")
        metadata = b""
        if kind == "filesystem":
            metadata = gateway.http.get(f"/v1/artifacts/{device['segments'][0]['digest']}").content
            assert len(metadata) == layer["offset"] == device["segments"][0]["length"] > 0
        expected = metadata + padded(small_tar) if metadata else small_tar
        assert device["size"] == len(expected)
        edges = [layer["offset"] + edge for edge in span_edges(gateway, layer["digest"])]
        step = _MEMBER_BYTES.get(flavour)
        members = range(0, len(small_tar), step) if step else ()
        edges += [layer["offset"] + edge for edge in members]
        edges += [segment["offset"] for segment in device["segments"]] + [len(expected)]
        ranges = itertools.chain(
            random_ranges(len(flavour), count, len(expected)), around(edges, len(expected))
        )
        with gateway.reader(device["name"]) as reader:
            wanted = list(ranges)
            assert reader.differences(expected, wanted) == []
        compared += len(wanted)
        assert len(set(edges)) > 10
    figure(f"ranges compared, {flavour}", compared)
    figure(f"ranges different, {flavour}", 0)
