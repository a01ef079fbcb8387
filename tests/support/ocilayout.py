"""OCI image layout folders for tests (OCI image-spec: image-layout.md, image-index.md, manifest.md, config.md)."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER_TAR + "+gzip"
LAYER_ZSTD = LAYER_TAR + "+zstd"

Descriptor = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """A layer as it is stored: its blob in memory or in a file, and the digest of its decompressed tar."""

    blob: bytes | Path
    diff_id: str
    media_type: str = LAYER_GZIP


def digest_of(content: bytes | Path) -> str:
    """`sha256:` and the hexadecimal digest of bytes or of a file's content."""
    if isinstance(content, bytes):
        return "sha256:" + hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def gzip_layer(blob: bytes | Path, tar: bytes | Path) -> Layer:
    """A layer whose blob is gzip of that tar, made by the caller in the flavour it wants."""
    return Layer(blob, digest_of(tar))


def tar_layer(tar: bytes | Path) -> Layer:
    """A layer stored as the plain tar it is."""
    return Layer(tar, digest_of(tar), LAYER_TAR)


class OciLayout:
    """A layout folder that grows: add images, nest them in an index per platform if wanted, tag the result.

    Every method returns the descriptor of what it added, as JSON for the document that will refer to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        self._tagged: list[Descriptor] = []
        self._write_index()

    def blob_path(self, digest: str) -> Path:
        algorithm, _, encoded = digest.partition(":")
        return self.folder / "blobs" / algorithm / encoded

    def add_blob(self, content: bytes | Path, media_type: str) -> Descriptor:
        digest = digest_of(content)
        path = self.blob_path(digest)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
        return {"mediaType": media_type, "digest": digest, "size": path.stat().st_size}

    def add_json(self, document: Mapping[str, Any], media_type: str) -> Descriptor:
        return self.add_blob(json.dumps(document).encode(), media_type)

    def add_image(
        self,
        layers: Iterable[Layer],
        *,
        platform: str = "linux/amd64",
        config: Mapping[str, Any] | None = None,
        tag: str | None = None,
    ) -> Descriptor:
        """A manifest with its configuration and its layers, base first. `config` overrides fields of the configuration."""
        layers = list(layers)
        fields = _platform_fields(platform)
        rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add_json({**fields, "rootfs": rootfs, "config": {}, **(config or {})}, CONFIG),
            "layers": [self.add_blob(layer.blob, layer.media_type) for layer in layers],
        }
        descriptor = self.add_json(manifest, MANIFEST) | {"platform": fields}
        return descriptor if tag is None else self.tag(tag, descriptor)

    def add_index(self, descriptors: Iterable[Descriptor], *, tag: str | None = None) -> Descriptor:
        """An index of images (one per platform) or of further indexes."""
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(descriptors)}
        descriptor = self.add_json(document, INDEX)
        return descriptor if tag is None else self.tag(tag, descriptor)

    def tag(self, name: str, descriptor: Descriptor) -> Descriptor:
        """Give a name to what a descriptor points at, taking it from what had it."""
        self._tagged = [entry for entry in self._tagged if _name_of(entry) != name]
        self._tagged.append(descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}})
        self._write_index()
        return descriptor

    def _write_index(self) -> None:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self._tagged}
        (self.folder / "index.json").write_text(json.dumps(document))


def _name_of(entry: Descriptor) -> str:
    return str(entry["annotations"]["org.opencontainers.image.ref.name"])


def _platform_fields(platform: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
