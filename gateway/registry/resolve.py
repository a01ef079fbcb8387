"""From a manifest or index to one platform's ``Image``, whatever store the documents lie in."""

from __future__ import annotations

from typing import Protocol

from gateway.errors import InvalidManifest, PlatformNotFound
from gateway.registry.manifest import (
    Config,
    Index,
    Manifest,
    choose_entry,
    document_text,
    parse_config,
    parse_manifest,
)
from gateway.registry.platform import Platform, choose
from gateway.registry.source import Descriptor, Image, Layer

# An index in an index is legal and rare; a deeper one is a mistake or an attack.
_MAX_DEPTH = 4


class DocumentStore(Protocol):
    """Fetches small documents of one repository, their digests verified and their lengths bounded."""

    async def manifest(self, descriptor: Descriptor) -> tuple[bytes, str]:
        """A manifest's or index' bytes and the media type that the transfer named (may be empty)."""
        ...

    async def config(self, descriptor: Descriptor) -> bytes: ...


async def resolve_image(
    store: DocumentStore, root: Manifest | Index, digest: str, *, reference: str, wanted: Platform
) -> Image:
    """Walk from ``root`` (of ``digest``) to the manifest for ``wanted``, and read its configuration.

    Raises ``PlatformNotFound`` listing what there is, ``InvalidManifest``, and what ``store`` raises.
    """
    for _ in range(_MAX_DEPTH):
        if isinstance(root, Manifest):
            return await _read_image(store, root, digest, reference=reference, wanted=wanted)
        entry = choose_entry(root, wanted, reference)
        digest = entry.descriptor.digest
        body, media_type = await store.manifest(entry.descriptor)
        root = parse_manifest(body, media_type or entry.descriptor.media_type, f"{reference} ({digest})")
    raise InvalidManifest(f"{reference}: indexes are nested more than {_MAX_DEPTH} deep")


async def _read_image(
    store: DocumentStore, manifest: Manifest, digest: str, *, reference: str, wanted: Platform
) -> Image:
    body = await store.config(manifest.config)
    config = Config(None, ())
    if manifest.has_image_config:
        config = parse_config(body, f"{reference}: configuration")
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidManifest(
                f"{reference}: {len(manifest.layers)} layers, but {len(config.diff_ids)} diff_ids"
            )
    if config.platform is not None and choose(wanted, [config.platform]) is None:
        raise PlatformNotFound(f"{reference}: no image for {wanted}; there is {config.platform}")
    diff_ids: tuple[str | None, ...] = config.diff_ids or (None,) * len(manifest.layers)
    return Image(
        reference=reference,
        digest=digest,
        platform=str(config.platform or wanted),
        config=document_text(body).encode(),
        layers=tuple(Layer(layer, diff_id) for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)),
    )
