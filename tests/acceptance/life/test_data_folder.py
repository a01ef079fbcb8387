"""The data folder: which format it has, where things lie in it, and what binds them to the catalog."""

import contextlib
import hashlib
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import artifact, index_folder, metadata_digest, registered, small_image
from tests.support.processes import Process, free_port, http_answers, wait_until

INDEX_FILES = {"index.json", "spans.bin", "checkpoints.zinfo", "toc.bin", "leaves.bin"}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def texts(document: Any) -> set[str]:
    """Every string in a JSON document."""
    if isinstance(document, dict):
        return set().union(*map(texts, document.values()), document)
    if isinstance(document, list):
        return set().union(*map(texts, document))
    return {document} if isinstance(document, str) else set()


def test_the_folder_says_its_format(gateway: Gateway) -> None:
    assert json.loads((gateway.data_dir / "VERSION").read_text())["format"] == 2
    assert (gateway.data_dir / "catalog.sqlite").is_file()


def test_an_index_lies_in_a_folder_of_its_attempt_and_its_facts_hold_the_digests_of_its_files(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    registered(gateway, "app", image)
    for blob in image.blobs:
        folder = index_folder(gateway, blob)
        parts = folder.relative_to(gateway.data_dir).parts
        assert parts[:2] == ("layers", blob.removeprefix("sha256:"))
        assert len(parts) == 4, "layers/<blob hex>/<cut>/<attempt>"
        assert {path.name for path in folder.iterdir()} == INDEX_FILES
        told = " ".join(texts(json.loads((folder / "index.json").read_text())))
        for name in INDEX_FILES - {"index.json"}:
            assert sha256_of(folder / name) in told, f"index.json does not hold the digest of {name}"


def test_the_catalog_names_each_index_by_attempt_and_digest(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    registered(gateway, "app", image)
    assert gateway.stop() == 0
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "catalog.sqlite")) as catalog:
        catalog.row_factory = sqlite3.Row
        rows = [dict(row) for row in catalog.execute("SELECT * FROM layer_indexes")]
    for blob in image.blobs:
        (row,) = [row for row in rows if blob.removeprefix("sha256:") in row["blob"]]
        folder = index_folder(gateway, blob)
        assert (str(row["cut"]), str(row["attempt"])) == folder.parts[-2:]
        digest = sha256_of(folder / "index.json")
        held = [value.hex() if isinstance(value, bytes) else str(value) for value in row.values()]
        assert any(digest in value for value in held), "the row does not hold the digest of index.json"


def test_metadata_is_an_artifact_named_by_its_digest(gateway: Gateway, registry: FaultRegistry) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    digest = metadata_digest(kept.device)
    path = artifact(gateway, digest)
    assert path == gateway.data_dir / "artifacts/sha256" / digest.removeprefix("sha256:")
    assert sha256_of(path) == path.name


@pytest.mark.parametrize("version", ['{"format": 3}', "no version"])
def test_a_folder_of_another_format_is_refused_and_left_as_it_is(version: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "VERSION").write_text(version)
    (data / "catalog.sqlite").write_bytes(b"of another version")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.iterdir()}
    port = free_port()
    argv = [sys.executable, "-m", "gateway", "serve", "--data-dir", data, "--port", str(port)]
    serves = http_answers(f"http://127.0.0.1:{port}/readyz")
    with Process(argv, log=tmp_path / "log", cwd=Path(__file__).parents[3]) as new:
        wait_until(lambda: new.returncode is not None or serves(), what="an end", seconds=60)
        assert new.returncode is not None, "a folder of another format is served"
    assert new.returncode != 0
    assert str(data) in new.output
    assert "VERSION" in new.output or "format" in new.output
    assert "Traceback" not in new.output
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.iterdir()} == before
