"""Artifacts: a name stands for its bytes, whatever happens on the way to it and on the disk afterwards."""

from __future__ import annotations

import pytest

from gateway.artifacts import Artifacts
from gateway.errors import ArtifactDamaged, ArtifactNotFound, ContentMismatch, InvalidRequest, PayloadTooLarge
from tests.support.layers import content, sha256

DATA = content(100_000, 3)
DIGEST = sha256(DATA)


@pytest.fixture
def artifacts(tmp_path):
    for name in ("artifacts", "tmp"):
        (tmp_path / name).mkdir()
    return Artifacts(tmp_path / "artifacts", tmp_path / "tmp", max_bytes=len(DATA))


async def body(data=DATA, error=None):
    for at in range(0, len(data), 30_000):
        yield data[at : at + 30_000]
    if error is not None:
        raise error


async def test_what_was_put_is_read(artifacts):
    assert await artifacts.put(DIGEST, body()) is True
    assert await artifacts.put(DIGEST, body()) is False
    assert await artifacts.size(DIGEST) == len(DATA)
    assert await artifacts.read(DIGEST) == DATA
    blob = artifacts.blob(DIGEST, len(DATA))
    assert await blob.read(50, 100) == DATA[50:150]
    assert b"".join([piece async for piece in blob.stream(7)]) == DATA[7:]


@pytest.mark.parametrize(
    ("digest", "sent", "kind"),
    [
        (DIGEST, body(DATA[:-1]), ContentMismatch),
        (DIGEST, body(DATA + b"x"), PayloadTooLarge),
        (DIGEST, body(error=ConnectionResetError()), Exception),
        ("sha256:../../x", body(), InvalidRequest),
    ],
    ids=["other bytes", "too long", "broken off", "no digest"],
)
async def test_an_upload_that_fails_leaves_nothing(artifacts, tmp_path, digest, sent, kind):
    with pytest.raises(kind):
        await artifacts.put(digest, sent)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_what_is_not_there_is_not_found(artifacts):
    for call in (artifacts.size(DIGEST), artifacts.verified(DIGEST), artifacts.read(DIGEST)):
        with pytest.raises(ArtifactNotFound, match="upload it"):
            await call
    with pytest.raises(ArtifactDamaged, match="gone"):
        await artifacts.blob(DIGEST, 10).read(0, 10)


async def test_what_the_disk_changed_is_damaged_and_another_upload_mends_it(artifacts):
    await artifacts.put(DIGEST, body())
    path = await artifacts.verified(DIGEST)
    path.write_bytes(DATA[:-1])
    with pytest.raises(ArtifactDamaged):
        await artifacts.verified(DIGEST)
    with pytest.raises(ArtifactDamaged, match="shorter"):
        await artifacts.blob(DIGEST, len(DATA)).read(len(DATA) - 10, 10)
    await artifacts.put(DIGEST, body())
    assert await artifacts.read(DIGEST) == DATA


async def test_a_finished_file_is_adopted_in_place_of_a_damaged_one(artifacts, tmp_path):
    (tmp_path / "artifacts" / DIGEST.partition(":")[2]).mkdir()
    with pytest.raises(ArtifactDamaged):
        await artifacts.verified(DIGEST)
    made = artifacts.scratch()
    made.write_bytes(DATA)
    assert await artifacts.adopt(made) == DIGEST
    assert not made.exists()
    assert await artifacts.read(DIGEST) == DATA
