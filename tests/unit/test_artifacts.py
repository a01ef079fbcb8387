"""Artifacts: a name stands for its bytes, whatever happens on the way to it and on the disk afterwards."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from gateway.artifacts import Artifacts
from gateway.errors import (
    ArtifactDamaged,
    ArtifactNotFound,
    ContentMismatch,
    InvalidRequest,
    PayloadTooLarge,
    StorageError,
)
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


async def test_an_upload_takes_the_place_of_what_is_no_file(artifacts, tmp_path):
    (tmp_path / "artifacts" / DIGEST.partition(":")[2]).mkdir()
    with pytest.raises(ArtifactDamaged, match="upload it again"):
        await artifacts.read(DIGEST)
    assert await artifacts.put(DIGEST, body()) is True
    assert await artifacts.read(DIGEST) == DATA


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
async def test_what_cannot_be_read_just_now_is_neither_lost_nor_damaged(artifacts, monkeypatch, number):
    await artifacts.put(DIGEST, body())
    real = Path.open

    def fail(path, *args, **options):
        if path.name == DIGEST.partition(":")[2]:
            raise OSError(number, os.strerror(number))
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        blob = artifacts.blob(DIGEST, len(DATA))
        for call in (artifacts.verified(DIGEST), artifacts.read(DIGEST), blob.read(0, 10)):
            with pytest.raises(StorageError, match=os.strerror(number)) as error:
                await call
            assert type(error.value) is StorageError
    assert await artifacts.read(DIGEST) == DATA


async def test_a_disk_that_takes_no_more_is_a_storage_error_and_leaves_nothing(
    artifacts, tmp_path, monkeypatch
):
    def fail(temporary, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("blockgate.durable.publish", fail)
    with pytest.raises(StorageError, match="No space left"):
        await artifacts.put(DIGEST, body())
    made = artifacts.scratch()
    made.write_bytes(DATA)
    with pytest.raises(StorageError, match="No space left"):
        await artifacts.adopt(made)
    made.unlink()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_an_upload_that_is_cancelled_leaves_nothing(artifacts, tmp_path):
    begun = asyncio.Event()

    async def endless():
        yield DATA[:10]
        begun.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(artifacts.put(DIGEST, endless()))
    await asyncio.wait_for(begun.wait(), 20)
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
