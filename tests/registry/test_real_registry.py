"""Against a registry that other people wrote."""

from __future__ import annotations

import asyncio
import gzip
import random

import pytest

from gateway.errors import BlobNotFound, ImageNotFound, RegistryProtocolError, RegistryUnauthorized
from gateway.registry.credentials import CredentialStore
from gateway.registry.reference import parse_reference
from gateway.registry.source import Descriptor
from tests.registry.conftest import build_registries
from tests.support.dockerregistry import docker_registry
from tests.support.ocilayout import OciLayout, digest_of, gzip_layer

pytestmark = pytest.mark.real

TARS = [random.Random(seed).randbytes(size) for seed, size in ((1, 3_000_000), (2, 10_000))]
LAYERS = [gzip.compress(tar, 1) for tar in TARS]


@pytest.fixture(params=[None, ("me", "s3cret:pw")], ids=["open", "htpasswd"])
def real(request, tmp_path):
    layout = OciLayout(tmp_path / "layout")
    layout.add_image([gzip_layer(layer, tar) for layer, tar in zip(LAYERS, TARS, strict=True)], tag="1.0")
    folder = tmp_path / "registry"
    folder.mkdir()
    with docker_registry(folder, request.param) as started:
        started.push(layout.folder, "1.0", "team/app")
        yield started


@pytest.fixture
async def source(real):
    registries = build_registries(store=CredentialStore([real.auth_file]))
    yield registries.source(insecure=True)
    await registries.aclose()


async def test_an_image_is_resolved_and_read_as_it_was_pushed(real, source):
    reference = parse_reference(f"{real.host}/team/app:1.0")
    image = await source.resolve(reference, "linux/amd64")
    assert [layer.diff_id for layer in image.layers] == [digest_of(tar) for tar in TARS]
    assert (await source.resolve(reference.pinned(image.digest), "linux/amd64")).layers == image.layers
    for layer, content in zip(image.layers, LAYERS, strict=True):
        blob = await source.open_blob(reference, layer.descriptor)
        assert b"".join([bytes(piece) async for piece in blob.stream()]) == content
        assert b"".join([bytes(piece) async for piece in blob.stream(9_000)]) == content[9_000:]
        assert bytes(await blob.read(0, 1)) == content[:1]
        assert bytes(await blob.read(blob.size - 1, 1)) == content[-1:]
        reads = await asyncio.gather(*(blob.read(position * 500, 1000) for position in range(16)))
        assert [bytes(read) for read in reads] == [
            content[position * 500 : position * 500 + 1000] for position in range(16)
        ]


async def test_what_is_not_there_has_its_error(real, source):
    reference = parse_reference(f"{real.host}/team/app:1.0")
    for name in ("team/none:1.0", "team/app:none", f"team/app@sha256:{'0' * 64}"):
        with pytest.raises(ImageNotFound):
            await source.resolve(parse_reference(f"{real.host}/{name}"), "linux/amd64")
    blob = await source.open_blob(reference, Descriptor("", f"sha256:{'0' * 64}", 10))
    with pytest.raises(BlobNotFound):
        await blob.read(0, 10)
    longer = Descriptor("", digest_of(LAYERS[0]), len(LAYERS[0]) + 100)
    with pytest.raises(RegistryProtocolError, match="manifest says"):
        await (await source.open_blob(reference, longer)).read(len(LAYERS[0]) + 10, 10)


async def test_without_credentials_a_closed_registry_says_so(real):
    registries = build_registries()
    resolving = registries.source(insecure=True).resolve(
        parse_reference(f"{real.host}/team/app:1.0"), "linux/amd64"
    )
    try:
        if real.credentials is None:
            assert (await resolving).layers
        else:
            with pytest.raises(RegistryUnauthorized, match="log in"):
                await resolving
    finally:
        await registries.aclose()
