"""Manifests, indexes and configurations, parsed strictly (OCI image-spec 1.1; Docker's schema 2). Pure.

Documents without ``mediaType`` are recognised by their shape. One that could be read both ways is refused:
its digest would name two different images (CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import InvalidManifest, ManifestMismatch, PlatformNotFound
from gateway.registry.partial import shown
from gateway.registry.platform import Platform, choose, normalise
from gateway.registry.reference import is_digest
from gateway.registry.source import Descriptor

MANIFEST_LIMIT_BYTES = 4 * 1024 * 1024
CONFIG_LIMIT_BYTES = 8 * 1024 * 1024

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
ACCEPT = ", ".join((*_MANIFEST_TYPES, *_INDEX_TYPES))
_CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
# Real images have at most 127 layers (a limit of Docker's), indexes a few dozen platforms.
_MAX_LAYERS = 1024
_MAX_ENTRIES = 4096
# Any escape of a JSON string, so that an escaped backslash is not taken for the start of the next one: a pair of
# surrogates (group 1), a surrogate without its other half (group 2), or another.
_ESCAPE = re.compile(
    r"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's image: the configuration and the layers, base first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def has_image_config(self) -> bool:
        """Whether the configuration is an image's, and not that of some other artifact."""
        return self.config.media_type in _CONFIG_TYPES


@dataclass(frozen=True, slots=True)
class Entry:
    """A manifest (or another index) in an index. ``platform`` is None where the index does not say."""

    descriptor: Descriptor
    platform: Platform | None


@dataclass(frozen=True, slots=True)
class Index:
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """What of an image's configuration is needed here."""

    platform: Platform | None
    diff_ids: tuple[str, ...]


def verify_digest(body: bytes, digest: str, where: str) -> None:
    """Raise ``ManifestMismatch`` unless ``digest`` (sha256 or sha512) is that of ``body``."""
    algorithm, _, expected = digest.partition(":")
    if hashlib.new(algorithm, body).hexdigest() != expected:
        raise ManifestMismatch(f"{where}: the {len(body)} bytes received are not those of {digest}")


def digest_of(body: bytes) -> str:
    """The sha256 digest of a document, in its written form."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def document_text(body: bytes) -> str:
    """A JSON document as text whose every string UTF-8 can hold.

    JSON can name half of a surrogate pair (RFC 8259 §8.2: such text is "unpredictable"), Python reads it, and nothing
    that is made of it can be written or sent. Each becomes U+FFFD, like bytes that are not of the document's encoding.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    return _ESCAPE.sub(lambda escape: r"\ufffd" if escape[2] else escape[0], text)


def parse_manifest(body: bytes, media_type: str, where: str) -> Manifest | Index:
    """Parse a manifest or an index, by its own ``mediaType`` and its shape.

    ``media_type`` is what the transfer said; registries that label documents wrongly are common, so that it
    is only shown in errors. Raises ``InvalidManifest``; its text begins with ``where``.
    """
    document = _parse_object(body, where)
    own = document.get("mediaType")
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise InvalidManifest(
            f"{where}: a manifest of Docker's schema 1, which is not read; push the image again"
        )
    if "manifests" in document and ("layers" in document or "config" in document):
        raise InvalidManifest(f"{where}: both a manifest and an index")
    if "manifests" in document and own not in _MANIFEST_TYPES:
        return Index(
            tuple(_entry(item, where) for item in _array(document, "manifests", _MAX_ENTRIES, where))
        )
    if "layers" in document and own not in _INDEX_TYPES:
        layers = _array(document, "layers", _MAX_LAYERS, where)
        return Manifest(
            parse_descriptor(document.get("config"), f"{where}: config"),
            tuple(parse_descriptor(item, f"{where}: layer {index}") for index, item in enumerate(layers)),
        )
    raise InvalidManifest(
        f"{where}: neither a manifest nor an index (its type is {shown(str(own or media_type))})"
    )


def parse_descriptor(item: object, where: str) -> Descriptor:
    """Parse a content descriptor. Raises ``InvalidManifest``."""
    if not isinstance(item, dict):
        raise InvalidManifest(f"{where}: a descriptor is missing or no object")
    digest, size = item.get("digest"), item.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise InvalidManifest(f"{where}: {shown(str(digest))} is not a sha256 or sha512 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise InvalidManifest(f"{where}: {shown(str(size))} is not a size in bytes")
    annotations = item.get("annotations")
    texts = annotations if isinstance(annotations, dict) else {}
    return Descriptor(
        media_type=str(item.get("mediaType") or ""),
        digest=digest,
        size=size,
        annotations={str(key): value for key, value in texts.items() if isinstance(value, str)},
    )


def choose_entry(index: Index, wanted: Platform, where: str) -> Entry:
    """The entry for ``wanted``. Raises ``PlatformNotFound`` listing the platforms there are."""
    chosen = choose(wanted, [entry.platform for entry in index.entries])
    if chosen is not None:
        return index.entries[chosen]
    unnamed = [entry for entry in index.entries if entry.platform is None]
    if len(unnamed) == 1:
        return unnamed[0]  # it may be a nested index or the only manifest; its configuration is checked later
    offered = sorted({str(entry.platform) for entry in index.entries if entry.platform})
    raise PlatformNotFound(f"{where}: no image for {wanted}; there are {', '.join(offered)[:1000] or 'none'}")


def parse_config(body: bytes, where: str) -> Config:
    """Parse an image's configuration (image-spec, config.md). Raises ``InvalidManifest``."""
    document = _parse_object(body, where)
    rootfs = document.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    diff_ids = found if isinstance(found, list) else []
    for diff_id in diff_ids:
        if not isinstance(diff_id, str) or not is_digest(diff_id):
            raise InvalidManifest(f"{where}: {shown(str(diff_id))} is not a diff_id")
    return Config(_platform(document), tuple(diff_ids))


def _entry(item: object, where: str) -> Entry:
    descriptor = parse_descriptor(item, f"{where}: index")
    platform = item.get("platform") if isinstance(item, dict) else None
    return Entry(descriptor, _platform(platform) if isinstance(platform, dict) else None)


def _platform(item: Mapping[str, Any]) -> Platform | None:
    os, architecture, variant = item.get("os"), item.get("architecture"), item.get("variant")
    if not (isinstance(os, str) and isinstance(architecture, str) and os and architecture):
        return None
    return normalise(os[:64], architecture[:64], variant[:64] if isinstance(variant, str) else "")


def _array(document: Mapping[str, Any], name: str, limit: int, where: str) -> list[Any]:
    items = document[name]
    if not isinstance(items, list) or len(items) > limit:
        raise InvalidManifest(f"{where}: {name} is not a list of at most {limit} items")
    return items


def _parse_object(body: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(document_text(body))
    except (ValueError, RecursionError):
        raise InvalidManifest(f"{where}: not JSON") from None
    if not isinstance(document, dict):
        raise InvalidManifest(f"{where}: not a JSON object")
    return document
