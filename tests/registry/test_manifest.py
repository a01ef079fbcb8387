from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidManifest, ManifestMismatch, PlatformNotFound
from gateway.registry.manifest import (
    Index,
    Manifest,
    choose_entry,
    digest_of,
    document_text,
    parse_config,
    parse_manifest,
    verify_digest,
)
from gateway.registry.platform import parse_platform
from gateway.registry.resolve import resolve_image
from gateway.registry.source import Descriptor

D = "sha256:" + "ab" * 32
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": D, "size": 10}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": D, "size": 1000}
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def parse(document: object, media_type: str = "") -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), media_type, "host/repo")


@pytest.mark.parametrize("own", [None, OCI_MANIFEST, DOCKER_MANIFEST])
@pytest.mark.parametrize("sent", ["", OCI_MANIFEST, f"{DOCKER_MANIFEST}; charset=utf-8", "text/plain"])
def test_manifests_are_recognised_with_and_without_a_type(own, sent):
    document = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER, LAYER]}
    if own:
        document["mediaType"] = own
    manifest = parse(document, sent)
    assert isinstance(manifest, Manifest)
    assert manifest.has_image_config
    assert [layer.size for layer in manifest.layers] == [1000, 1000]


@pytest.mark.parametrize("own", [None, OCI_INDEX, DOCKER_LIST])
def test_indexes_are_recognised_with_and_without_a_type(own):
    entry = {
        "mediaType": OCI_MANIFEST,
        "digest": D,
        "size": 3,
        "platform": {"os": "linux", "architecture": "arm64"},
    }
    document = {"schemaVersion": 2, "manifests": [entry]}
    if own:
        document["mediaType"] = own
    index = parse(document)
    assert isinstance(index, Index)
    assert str(index.entries[0].platform) == "linux/arm64"


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        ([], "object"),
        ({}, "neither"),
        ({"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        ({"manifests": [], "layers": [], "config": CONFIG}, "both"),
        ({"manifests": [], "mediaType": OCI_MANIFEST}, "neither"),
        ({"config": CONFIG, "layers": [], "mediaType": OCI_INDEX}, "neither"),
        ({"layers": []}, "descriptor"),
        ({"config": CONFIG, "layers": {}}, "list"),
        ({"config": CONFIG, "layers": ["x"]}, "descriptor"),
        ({"config": CONFIG, "layers": [LAYER] * 2000}, "at most"),
        ({"config": CONFIG, "layers": [{**LAYER, "digest": "sha256:xyz"}]}, "digest"),
        ({"config": CONFIG, "layers": [{**LAYER, "digest": f"{D}/../.."}]}, "digest"),
        ({"config": CONFIG, "layers": [{**LAYER, "size": -1}]}, "size"),
        ({"config": CONFIG, "layers": [{**LAYER, "size": True}]}, "size"),
        ({"config": CONFIG, "layers": [{**LAYER, "size": 1.5}]}, "size"),
        ({"config": CONFIG, "layers": [{**LAYER, "size": 2**70}]}, "size"),
    ],
)
def test_a_wrong_document_says_what_is_wrong(document, wrong):
    with pytest.raises(InvalidManifest, match=wrong):
        parse(document)


def test_deep_nesting_and_garbage_are_invalid_manifests():
    for body in (b"[" * 100_000, b"\xff\xfe", b"", b"{"):
        with pytest.raises(InvalidManifest, match="JSON"):
            parse_manifest(body, "", "host/repo")


def test_a_missing_platform_lists_what_there_is():
    def entry(os: str, architecture: str) -> dict[str, object]:
        return {"digest": D, "size": 3, "platform": {"os": os, "architecture": architecture}}

    index = parse(
        {"manifests": [entry("linux", "amd64"), entry("linux", "arm64"), entry("unknown", "unknown")]}
    )
    with pytest.raises(PlatformNotFound, match=r"linux/s390x; there are linux/amd64, linux/arm64"):
        choose_entry(index, parse_platform("linux/s390x"), "host/repo")
    with pytest.raises(PlatformNotFound, match="none"):
        choose_entry(parse({"manifests": []}), parse_platform("linux/amd64"), "host/repo")


def test_a_single_entry_without_a_platform_is_followed():
    index = parse({"manifests": [{"digest": D, "size": 3}]})
    assert choose_entry(index, parse_platform("linux/amd64"), "host/repo").descriptor.digest == D


def test_configurations_give_platform_and_diff_ids():
    config = parse_config(
        json.dumps(
            {"os": "linux", "architecture": "arm64", "variant": "v8", "rootfs": {"diff_ids": [D]}}
        ).encode(),
        "x",
    )
    assert (str(config.platform), config.diff_ids) == ("linux/arm64", (D,))
    assert parse_config(b"{}", "x").platform is None
    with pytest.raises(InvalidManifest, match="diff_id"):
        parse_config(json.dumps({"rootfs": {"diff_ids": ["sha256:no"]}}).encode(), "x")


@given(st.binary(max_size=100))
def test_only_the_right_bytes_pass_a_digest(body):
    verify_digest(body, digest_of(body), "x")
    with pytest.raises(ManifestMismatch):
        verify_digest(body + b"\0", digest_of(body), "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.just(D),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["config", "layers", "manifests", "digest", "size", "platform", "os", "mediaType", "rootfs"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_a_document_or_an_invalid_manifest(document):
    body = json.dumps(document).encode()
    with contextlib.suppress(InvalidManifest):
        assert isinstance(parse_manifest(body, "", "x"), Manifest | Index)
    with contextlib.suppress(InvalidManifest):
        parse_config(body, "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (rb'"\ud800"', "�"),
        (rb'"A=\uDFFF!"', "A=�!"),
        (rb'"\ud83d\ude00"', "😀"),
        (rb'"\ude00\ud83d\ude00\ud83d"', "�😀�"),
        (rb'"\\ud800"', r"\ud800"),
        (rb'"\\\ud800"', "\\�"),
        (rb'"\u00e9\n\"\ud800\""', 'é\n"�"'),
        (b'"\xed\xa0\x80"', "���"),
        ('"\ud800é"'.encode("utf-16-le", "surrogatepass"), "�é"),
        ("﻿{}".encode(), {}),
    ],
)
def test_half_of_a_surrogate_pair_becomes_a_replacement_character(text, value):
    assert json.loads(document_text(text)) == value


@given(
    st.recursive(
        st.text() | st.text(st.characters(categories=["Cs"])), lambda inner: st.dictionaries(st.text(), inner)
    )
)
def test_whatever_is_kept_of_a_document_can_be_written_as_utf_8(document):
    text = document_text(json.dumps(document).encode())
    json.dumps(json.loads(text), ensure_ascii=False).encode()


class Documents:
    """A store of one configuration."""

    def __init__(self, config: bytes) -> None:
        self._config = config

    async def manifest(self, descriptor):
        raise AssertionError("the root is the manifest")

    async def config(self, descriptor):
        return self._config


async def test_an_image_keeps_a_configuration_that_can_be_shown():
    config = rb'{"rootfs": {"diff_ids": []}, "config": {"Env": ["A=\ud800"], "Labels": {"\udc00": "x"}}}'
    root = Manifest(Descriptor(str(CONFIG["mediaType"]), D, len(config)), ())
    image = await resolve_image(
        Documents(config), root, D, reference="host/repo", wanted=parse_platform("linux/amd64")
    )
    assert json.loads(image.config)["config"] == {"Env": ["A=�"], "Labels": {"�": "x"}}
    json.dumps(json.loads(image.config), ensure_ascii=False).encode()
