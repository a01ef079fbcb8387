"""Writes OCI image layout folders for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.support.faultregistry import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, digest_of

REF_NAME = "org.opencontainers.image.ref.name"


def put_blob(folder: Path, content: bytes) -> dict[str, object]:
    """Store a blob; gives its descriptor without a media type."""
    digest = digest_of(content)
    path = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"digest": digest, "size": len(content)}


def put_image(
    folder: Path,
    layers: Sequence[bytes],
    *,
    tag: str | None,
    diff_ids: Sequence[str],
    architecture: str = "amd64",
) -> str:
    """Store an image and add it to index.json under ``tag``; gives its manifest's digest."""
    config = {
        "os": "linux",
        "architecture": architecture,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, **put_blob(folder, json.dumps(config).encode())},
        "layers": [{"mediaType": LAYER_TYPE, **put_blob(folder, layer)} for layer in layers],
    }
    entry: dict[str, object] = {"mediaType": MANIFEST_TYPE, **put_blob(folder, json.dumps(manifest).encode())}
    entry["platform"] = {"os": "linux", "architecture": architecture}
    if tag is not None:
        entry["annotations"] = {REF_NAME: tag}
    path = folder / "index.json"
    index = json.loads(path.read_text()) if path.exists() else {"schemaVersion": 2, "manifests": []}
    index["manifests"].append(entry)
    path.write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(entry["digest"])
