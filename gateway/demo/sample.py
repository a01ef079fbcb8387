"""The image that the demo shows: an OCI layout of two gzip layers, made of Python's standard library."""

from __future__ import annotations

import hashlib
import io
import json
import sysconfig
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LAYER_BYTES = 48 << 20
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Sample:
    """The image that the demo makes: its folder, its tars (base first), and the files in it by path."""

    folder: Path
    tars: tuple[Path, ...]
    files: dict[str, Path]


def make_sample(folder: Path) -> Sample:
    """An OCI layout of two gzip layers of real files: the standard library's sources, and its packages' other files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    code: list[Path] = []
    other: list[Path] = []
    for path in sorted(library.rglob("*")):
        inside = path.relative_to(library)
        if (
            path.is_file()
            and not path.is_symlink()
            and not {"site-packages", "__pycache__"} & set(inside.parts)
        ):
            (code if path.suffix == ".py" else other).append(path)
    blobs = folder / "image" / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    tars, layers, diff_ids, files = [], [], [], {}
    for number, paths in enumerate((code, other)):
        tar = folder / f"layer{number}.tar"
        files.update(_write_tar(tar, library, paths))
        layer, diff_id = _add_layer(blobs, tar)
        tars.append(tar)
        layers.append(layer)
        diff_ids.append(diff_id)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Entrypoint": ["python3"], "WorkingDir": "/python", "Env": ["PYTHONHOME=/python"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _add(blobs, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    described = _add(blobs, json.dumps(manifest).encode(), _MANIFEST)
    described["annotations"] = {"org.opencontainers.image.ref.name": "demo"}
    index = {"schemaVersion": 2, "manifests": [described]}
    (folder / "image" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "image" / "index.json").write_text(json.dumps(index))
    return Sample(folder / "image", tuple(tars), files)


def _write_tar(tar: Path, library: Path, paths: list[Path]) -> dict[str, Path]:
    files = {}
    written = 0
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            written += path.stat().st_size
            if written > _LAYER_BYTES:
                break
            name = f"python/{path.relative_to(library)}"
            archive.add(path, name, recursive=False, filter=_anonymous)
            files[name] = path
    return files


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _add_layer(blobs: Path, tar: Path) -> tuple[dict[str, Any], str]:
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    diff_id, blob = hashlib.sha256(), io.BytesIO()
    with tar.open("rb") as file:
        while piece := file.read(1 << 20):
            diff_id.update(piece)
            blob.write(compressor.compress(piece))
    blob.write(compressor.flush())
    described = _add(blobs, blob.getvalue(), "application/vnd.oci.image.layer.v1.tar+gzip")
    return described, f"sha256:{diff_id.hexdigest()}"


def _add(blobs: Path, content: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
