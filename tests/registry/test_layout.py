"""OCI layout folders: what is below the roots is read, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
from pathlib import Path

import pytest

from gateway.errors import (
    BlobMismatch,
    BlobNotFound,
    ImageNotFound,
    InvalidManifest,
    ManifestMismatch,
    PathNotAllowed,
    PlatformNotFound,
    RangeNotSatisfiable,
    StorageError,
    TruncatedBody,
)
from gateway.registry.layout import LayoutSource
from gateway.registry.reference import parse_reference
from gateway.registry.source import Descriptor
from tests.support.ocilayout import OciLayout, digest_of, gzip_layer

TAR = random.Random(3).randbytes(2_500_000)
LAYER = gzip.compress(TAR, 1)
DIFF_ID = digest_of(TAR)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(root):
    return layout_with_an_image(root / "images").folder


def layout_with_an_image(folder: Path) -> OciLayout:
    layout = OciLayout(folder)
    layout.add_image([gzip_layer(LAYER, TAR)], tag="1.0")
    return layout


@pytest.fixture
def source(root):
    return LayoutSource([root])


async def resolve(source, text, platform="linux/amd64"):
    return await source.resolve(parse_reference(text), platform)


def blob_file(folder, digest=None):
    return folder / "blobs" / "sha256" / (digest or digest_of(LAYER)).removeprefix("sha256:")


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("text", ["oci:{folder}:1.0", "oci:{folder}", "oci:images:1.0", "oci:images"])
async def test_an_image_is_found_by_tag_or_alone_by_absolute_or_relative_path(folder, source, text):
    image = await resolve(source, text.format(folder=folder))
    assert [(layer.descriptor.size, layer.diff_id) for layer in image.layers] == [(len(LAYER), DIFF_ID)]
    assert image.reference == text.format(folder=folder)


async def test_an_image_is_found_by_digest(folder, source):
    digest = OciLayout(folder).add_image([gzip_layer(LAYER, TAR)] * 2)["digest"]
    image = await resolve(source, f"oci:{folder}@{digest}")
    assert (image.digest, len(image.layers)) == (digest, 2)


async def test_a_folder_of_several_platforms_is_an_index(folder, source):
    layout = OciLayout(folder)
    images = [
        layout.add_image([gzip_layer(LAYER, TAR)], platform=f"linux/{name}") for name in ("amd64", "arm64")
    ]
    layout.add_index(images, tag="1.0")
    arm = images[1]["digest"]
    for text in (f"oci:{folder}", f"oci:{folder}:1.0"):
        assert (await resolve(source, text, "linux/arm64")).digest == arm
    with pytest.raises(PlatformNotFound, match="linux/amd64, linux/arm64"):
        await resolve(source, f"oci:{folder}", "linux/s390x")


async def test_a_missing_tag_lists_those_there_are(folder, source):
    with pytest.raises(ImageNotFound, match=r"1\.0"):
        await resolve(source, f"oci:{folder}:2.0")


@pytest.mark.parametrize("text", ["oci:{root}/none", "oci:none", "oci:{root}"])
async def test_a_folder_without_an_index_is_image_not_found(root, source, text):
    with pytest.raises(ImageNotFound):
        await resolve(source, text.format(root=root))


@pytest.mark.parametrize(
    "text", ["oci:/etc", "oci:{root}/../x", "oci:../x", "oci:{root}-other", "oci:/nowhere/at/all"]
)
async def test_a_folder_outside_of_the_roots_is_refused(root, folder, source, text):
    with pytest.raises(PathNotAllowed, match="oci-root"):
        await resolve(source, text.format(root=root))


async def test_without_roots_nothing_is_read(folder):
    with pytest.raises(PathNotAllowed, match="oci-root"):
        await resolve(LayoutSource([]), f"oci:{folder}")


async def test_links_inside_of_the_roots_work_and_links_out_of_them_are_refused(
    root, folder, source, tmp_path
):
    outside = tmp_path / "outside"
    layout_with_an_image(outside)
    (root / "inner").symlink_to(folder)
    (root / "outer").symlink_to(outside)
    assert (await resolve(source, f"oci:{root}/inner")).layers
    with pytest.raises(PathNotAllowed):
        await resolve(source, f"oci:{root}/outer")


@pytest.mark.parametrize("name", ["index.json", "blob"])
async def test_a_file_that_is_a_link_out_of_the_roots_is_refused(folder, source, tmp_path, name):
    image = await resolve(source, f"oci:{folder}")
    path = folder / "index.json" if name == "index.json" else blob_file(folder)
    target = tmp_path / "moved"
    path.rename(target)
    path.symlink_to(target)
    reference = parse_reference(f"oci:{folder}")
    opening = (
        source.open_blob(reference, image.layers[0].descriptor)
        if name == "blob"
        else source.resolve(reference, "linux/amd64")
    )
    with pytest.raises(PathNotAllowed, match="link"):
        await opening


async def test_a_fifo_in_the_place_of_a_blob_does_not_hang(folder, source):
    image = await resolve(source, f"oci:{folder}")
    blob_file(folder).unlink()
    os.mkfifo(blob_file(folder))
    with pytest.raises(BlobNotFound, match="regular"):
        await source.open_blob(parse_reference(f"oci:{folder}"), image.layers[0].descriptor)


async def test_documents_are_verified(folder, source):
    image = await resolve(source, f"oci:{folder}")
    path = blob_file(folder, image.digest)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ManifestMismatch):
        await resolve(source, f"oci:{folder}")
    path.unlink()
    with pytest.raises(ImageNotFound):
        await resolve(source, f"oci:{folder}")


async def test_an_index_that_is_none_is_an_invalid_manifest(folder, source):
    (folder / "index.json").write_text("[]")
    with pytest.raises(InvalidManifest):
        await resolve(source, f"oci:{folder}")


@pytest.fixture
async def blob(folder, source):
    reference = parse_reference(f"oci:{folder}")
    image = await source.resolve(reference, "linux/amd64")
    blob = await source.open_blob(reference, image.layers[0].descriptor)
    yield blob
    await blob.aclose()


async def test_a_blob_is_read_at_random_and_in_order(blob):
    assert blob.size == len(LAYER)
    assert bytes(await blob.read(1000, 2000)) == LAYER[1000:3000]
    assert bytes(await blob.read(5, 0)) == b""
    assert b"".join([bytes(piece) async for piece in blob.stream()]) == LAYER
    pieces = [bytes(piece) async for piece in blob.stream(123)]
    assert b"".join(pieces) == LAYER[123:]
    assert max(len(piece) for piece in pieces) == 2**20
    with pytest.raises(RangeNotSatisfiable):
        await blob.read(len(LAYER), 1)


async def test_a_blob_that_shrank_is_never_padded(blob, folder):
    os.truncate(blob_file(folder), 1000)
    assert bytes(await blob.read(0, 1000)) == LAYER[:1000]
    with pytest.raises(TruncatedBody):
        await blob.read(999, 2)


async def test_a_blob_of_another_size_or_none_is_refused_at_opening(folder, source):
    reference = parse_reference(f"oci:{folder}")
    with pytest.raises(BlobMismatch):
        await source.open_blob(reference, Descriptor("", digest_of(LAYER), len(LAYER) + 1))
    with pytest.raises(BlobNotFound):
        await source.open_blob(reference, Descriptor("", "sha256:" + "0" * 64, 1))


async def test_closing_waits_for_reads_and_leaves_no_descriptor(folder, source):
    reference = parse_reference(f"oci:{folder}")
    before = open_descriptors()
    blob = await source.open_blob(reference, Descriptor("", digest_of(LAYER), len(LAYER)))
    reads = [asyncio.ensure_future(blob.read(position, 1000)) for position in range(8)]
    await asyncio.sleep(0)
    await blob.aclose()
    await blob.aclose()
    for position, result in enumerate(await asyncio.gather(*reads, return_exceptions=True)):
        assert isinstance(result, StorageError) or bytes(result) == LAYER[position : position + 1000]
    with pytest.raises(StorageError, match="closing"):
        await blob.read(0, 1)
    assert open_descriptors() <= before
