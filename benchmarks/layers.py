"""The layer that is measured: a real Debian root where one can be made here, else files of this machine."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.debianroot import debian_root_tar_gz

_OWN_FILES = Path("/usr/lib")
_OWN_BYTES = 170 << 20


@dataclass(frozen=True)
class Layer:
    """``tar`` is what ``blob`` decompresses to. Digests are written ``sha256:…``, sizes are in bytes."""

    name: str
    tar: Path
    blob: Path
    digest: str
    diff_id: str
    size: int
    tar_size: int


def choose(given: Path | None, folder: Path) -> Layer:
    """``given`` (a tar.gz), or the tests' Debian root, or a tar.gz of this machine's own files."""
    if given is not None:
        return _layer(given.name, given, folder)
    try:
        return _layer("Debian root, gzip -6", debian_root_tar_gz(), folder)
    except pytest.skip.Exception:
        return _layer(f"{_OWN_FILES} of this machine, gzip -6", _own_files(folder), folder)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _layer(name: str, blob: Path, folder: Path) -> Layer:
    tar = folder / "layer.tar"
    with tar.open("wb") as file:
        subprocess.run(["gzip", "-dc", blob], stdout=file, check=True)
    sizes = blob.stat().st_size, tar.stat().st_size
    return Layer(name, tar, blob.absolute(), digest_of(blob), digest_of(tar), *sizes)


def _own_files(folder: Path) -> Path:
    tar, total = folder / "own.tar", 0
    with tarfile.open(tar, "w") as archive:
        for path in sorted(_OWN_FILES.rglob("*")):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
                if total > _OWN_BYTES:
                    break
                archive.add(path, recursive=False)
    subprocess.run(["gzip", "-6", "-n", tar], check=True)
    return tar.with_name("own.tar.gz")
