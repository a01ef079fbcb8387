"""From a reference to an image: tags, digests, indexes, platforms, mirrors."""

from __future__ import annotations

import pytest

from gateway.errors import (
    BlobNotFound,
    ConfigurationError,
    ImageNotFound,
    InvalidManifest,
    InvalidReference,
    InvalidRequest,
    ManifestMismatch,
    PlatformNotFound,
    RegistryUnreachable,
)
from gateway.registry.client import ImageSources
from gateway.registry.layout import LayoutSource
from gateway.registry.reference import parse_reference
from gateway.registry.retry import RetryPolicy
from tests.support import faultregistry as faults


def index_of(*entries: tuple[str, dict[str, str] | None], media_type: str | None = faults.INDEX_TYPE):
    document = {
        "schemaVersion": 2,
        "manifests": [
            {"digest": digest, "size": 1, **({"platform": platform} if platform else {})}
            for digest, platform in entries
        ],
    }
    return {**document, "mediaType": media_type} if media_type else document


async def resolve(registries, registry, name="team/app", platform="linux/amd64"):
    return await registries.source(insecure=True).resolve(
        parse_reference(f"{registry.host}/{name}"), platform
    )


async def test_a_tag_resolves_to_layers_with_diff_ids(registry, make_registries, image, layer):
    resolved = await resolve(make_registries(), registry)
    assert resolved.reference == f"{registry.host}/team/app:latest"
    assert resolved.digest == image.digest
    assert resolved.platform == "linux/amd64"
    assert resolved.config == image.config.content
    (found,) = resolved.layers
    assert (found.descriptor.digest, found.descriptor.size) == (image.layers[0].digest, len(layer))
    assert found.diff_id.startswith("sha256:")


@pytest.mark.parametrize("name", ["team/app@{digest}", "team/app:other@{digest}"])
async def test_a_digest_is_what_is_asked_for_where_there_is_one(registry, make_registries, image, name):
    resolved = await resolve(make_registries(), registry, name.format(digest=image.digest))
    assert resolved.digest == image.digest
    assert registry.matching("/manifests/")[0].path.endswith(image.digest)


async def test_an_index_leads_to_the_platform_s_manifest(registry, make_registries, image, layer):
    arm = registry.add_image("team/app", [layer, layer], tag="arm", platform=("linux", "arm64", "v8"))
    inner = registry.add_manifest(
        "team/app", index_of((arm.digest, {"os": "linux", "architecture": "arm64"}), media_type=None)
    )
    registry.add_manifest(
        "team/app",
        index_of(
            (image.digest, {"os": "linux", "architecture": "amd64"}),
            (inner, {"os": "linux", "architecture": "arm64", "variant": "v8"}),
            (image.digest, {"os": "unknown", "architecture": "unknown"}),
        ),
        faults.INDEX_TYPE,
        "multi",
    )
    registries = make_registries()
    assert (await resolve(registries, registry, "team/app:multi")).digest == image.digest
    found = await resolve(registries, registry, "team/app:multi", "linux/arm64")
    assert (found.digest, found.platform, len(found.layers)) == (arm.digest, "linux/arm64", 2)
    with pytest.raises(PlatformNotFound, match="linux/amd64, linux/arm64"):
        await resolve(registries, registry, "team/app:multi", "linux/s390x")


async def test_a_single_manifest_of_another_platform_is_not_taken_for_the_wanted_one(
    registry, make_registries, image
):
    with pytest.raises(PlatformNotFound, match="there is linux/amd64"):
        await resolve(make_registries(), registry, platform="linux/arm64")


async def test_indexes_nested_too_deep_are_refused(registry, make_registries, image):
    digest = image.digest
    for _ in range(5):
        digest = registry.add_manifest("team/app", index_of((digest, None)), faults.INDEX_TYPE, "deep")
    with pytest.raises(InvalidManifest, match="nested"):
        await resolve(make_registries(), registry, "team/app:deep")


async def test_an_artifact_without_an_image_s_configuration_has_layers_and_no_diff_ids(
    registry, make_registries, layer
):
    blob, config = registry.add_blob(layer), registry.add_blob(b"{}")
    registry.add_manifest(
        "team/erofs",
        {
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.digest, "size": 2},
            "layers": [{"mediaType": "application/vnd.erofs", "digest": blob.digest, "size": blob.size}],
        },
        faults.MANIFEST_TYPE,
        "latest",
    )
    resolved = await resolve(make_registries(), registry, "team/erofs")
    assert [item.diff_id for item in resolved.layers] == [None]


@pytest.mark.parametrize(
    ("name", "error"),
    [("team/none", ImageNotFound), ("team/app:none", ImageNotFound)],
)
async def test_what_is_not_there_is_named(registry, make_registries, image, name, error):
    with pytest.raises(error, match=f"{registry.host}/{name.partition(':')[0]}"):
        await resolve(make_registries(), registry, name)


async def test_a_missing_configuration_is_blob_not_found(registry, make_registries, image):
    registry.delete_blob(image.config.digest)
    with pytest.raises(BlobNotFound):
        await resolve(make_registries(), registry)


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
async def test_a_document_of_another_digest_is_refused(registry, make_registries, image, part):
    registry.inject(faults.corrupt, times=None, matching=lambda request: part in request.path)
    with pytest.raises(ManifestMismatch):
        await resolve(make_registries(), registry, f"team/app@{image.digest}")


async def test_a_tag_s_manifest_must_match_the_digest_that_the_registry_claims(
    registry, make_registries, image
):
    registry.inject(faults.corrupt, matching=lambda request: "/manifests/" in request.path)
    with pytest.raises(ManifestMismatch):
        await resolve(make_registries(), registry)


@pytest.mark.parametrize(("part", "length"), [("/manifests/", 4 * 2**20 + 1), ("/blobs/", 8 * 2**20 + 1)])
async def test_documents_are_bounded(registry, make_registries, image, part, length):
    registry.inject(faults.oversize(length), times=None, matching=lambda request: part in request.path)
    with pytest.raises(InvalidManifest, match="longer"):
        await resolve(make_registries(), registry)


async def test_layers_and_diff_ids_must_agree(registry, make_registries, layer):
    registry.add_image("team/odd", [layer], diff_ids=[])
    with pytest.raises(InvalidManifest, match="diff_ids"):
        await resolve(make_registries(), registry, "team/odd")


async def test_a_wrong_platform_or_a_folder_is_refused_before_asking(registry, make_registries, image):
    registries = make_registries()
    with pytest.raises(InvalidRequest):
        await resolve(registries, registry, platform="linux")
    with pytest.raises(InvalidReference):
        await registries.source().resolve(parse_reference("oci:/x"), "linux/amd64")
    assert registry.requests == []


async def test_a_registry_that_is_not_there_is_unreachable(make_registries, unused_tcp_port):
    reference = parse_reference(f"127.0.0.1:{unused_tcp_port}/x")
    with pytest.raises(RegistryUnreachable, match=str(unused_tcp_port)):
        await make_registries().source(insecure=True).resolve(reference, "linux/amd64")


async def test_a_plain_http_registry_is_not_asked_without_leave(registry, make_registries, image):
    secure = make_registries(policy=RetryPolicy(attempts=1)).source()
    with pytest.raises(RegistryUnreachable):
        await secure.resolve(parse_reference(f"{registry.host}/team/app"), "linux/amd64")
    listed = make_registries(insecure_hosts=[registry.host]).source()
    resolved = await listed.resolve(parse_reference(f"{registry.host}/team/app"), "linux/amd64")
    assert resolved.digest == image.digest


async def test_mirrors_are_asked_first_and_the_origin_when_they_fail(registry, make_registries, image, layer):
    async with faults.FaultRegistry() as mirror:
        mirror.add_image("team/app", [layer])
        registries = make_registries(mirrors={registry.host: [f"http://{mirror.host}"]})
        resolved = await resolve(registries, registry)
        reference = parse_reference(resolved.reference)
        blob = await registries.source(insecure=True).open_blob(reference, resolved.layers[0].descriptor)
        assert bytes(await blob.read(0, 10)) == layer[:10]
        assert registry.requests == []

        mirror.inject(faults.ignore_range, times=None)
        assert bytes(await blob.read(0, 10)) == layer[:10]
        assert bytes(await blob.read(5, 10)) == layer[5:15]
        assert registry.count("/blobs/") == 2

        mirror.inject(faults.status(404), times=None, matching=faults.any_request)
        assert (await resolve(registries, registry)).digest == image.digest


async def test_a_mirror_serves_the_registry_s_images_when_the_registry_is_gone(
    make_registries, layer, unused_tcp_port
):
    async with faults.FaultRegistry() as mirror:
        mirror.add_image("team/app", [layer])
        gone = f"127.0.0.1:{unused_tcp_port}"
        registries = make_registries(mirrors={gone: [f"http://{mirror.host}"]})
        resolved = await registries.source(insecure=True).resolve(
            parse_reference(f"{gone}/team/app"), "linux/amd64"
        )
        assert resolved.reference == f"{gone}/team/app:latest"


@pytest.mark.parametrize("url", ["mirror:5000", "ftp://x", "http://u:p@x", "http://x/path", "http://[x", ""])
def test_a_mirror_is_a_base_url(make_registries, url):
    with pytest.raises(ConfigurationError, match="mirror"):
        make_registries(mirrors={"docker.io": [url]})


async def test_folders_and_registries_are_behind_one_interface(registry, make_registries, image, tmp_path):
    sources = ImageSources(make_registries(), LayoutSource([tmp_path]))
    reference = parse_reference(f"{registry.host}/team/app")
    resolved = await sources.open_source(reference, insecure=True).resolve(reference, "linux/amd64")
    assert resolved.digest == image.digest
    folder = parse_reference("oci:nothing")
    with pytest.raises(ImageNotFound):
        await sources.open_source(folder).resolve(folder, "linux/amd64")
    await sources.aclose()
