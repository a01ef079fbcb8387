"""One pass over a layer of any encoder in any pieces: a right index, or a broken promise by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.erofs.toc import read_toc
from gateway.errors import BlobMismatch, CorruptStream, DiffIdMismatch, InvalidZinfo
from gateway.ingest.layer_pass import Cutting, LayerPass, Promise
from gateway.layers.codec import GZIP, IDENTITY
from gateway.layers.folder import FolderStore
from gateway.layers.index import CHECKPOINTS, LEAVES, TOC
from gateway.layers.key import LayerKey, cut_name
from gateway.layers.verify import decode_span
from tests.support import gzips
from tests.support.layers import content, feed, index_blob, sha256, tar_of
from tests.support.zinfo_tables import build as build_table
from tests.support.zinfo_tables import encode, table

FILES = {"one": content(150_000, 1), "two": b"", "three/four": content(40_000, 2)}
TAR = tar_of(FILES)


def attempt(folder):
    """Where the files of the only index below ``folder`` are."""
    (found,) = (folder / "layers").glob("*/*/*")
    return found


def check(index, blob, decoded):
    """Every span of the index decodes from the blob to its bytes and proves itself."""
    found = b""
    for number in range(index.table.count):
        span = index.table.span(number)
        assert span.proven
        piece = blob[span.in_start : span.in_stop]
        assert hashlib.sha256(piece).digest() == span.in_sha256
        window = index.window(number)
        found += bytes(decode_span(index.codec, span, piece, window, None, first=number == 0, where="here"))
    assert found == decoded
    assert index.facts.size == len(decoded)
    assert index.facts.sha256 == sha256(decoded)


@pytest.mark.parametrize("chunk", [1 << 20, 65_537, 997])
@pytest.mark.parametrize("flavour", list(gzips.PURE))
async def test_every_flavour_in_any_pieces_gives_the_same_right_index(tmp_path, flavour, chunk):
    blob = gzips.PURE[flavour](TAR)
    index = await index_blob(tmp_path / "a", blob, GZIP, chunk=chunk, diff_id=sha256(TAR))
    check(index, blob, TAR)
    assert [entry.path for entry in read_toc((attempt(tmp_path / "a") / TOC).read_bytes())] == [
        b"one",
        b"two",
        b"three/four",
    ]
    whole = await index_blob(tmp_path / "b", blob, GZIP, chunk=1 << 30)
    assert whole.row.sha256 == index.row.sha256
    for path in attempt(tmp_path / "b").iterdir():
        assert (attempt(tmp_path / "a") / path.name).read_bytes() == path.read_bytes()


@pytest.mark.real
@pytest.mark.parametrize("flavour", list(gzips.PROGRAMS))
async def test_the_programs_that_people_use_give_a_right_index(tmp_path, flavour):
    blob = gzips.PROGRAMS[flavour](TAR)
    check(await index_blob(tmp_path, blob, GZIP, chunk=10_000, diff_id=sha256(TAR)), blob, TAR)


async def test_pieces_of_one_byte_are_enough(tmp_path):
    tar = tar_of({"a": content(3000, 3)})
    blob = gzips.member(tar)
    check(await index_blob(tmp_path, blob, GZIP, chunk=1, diff_id=sha256(tar)), blob, tar)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(gzips.PURE)), st.integers(1, 200_000), st.sampled_from([65536, 100_000, 1 << 20]))
async def test_any_chunking_and_span_size_gives_a_right_index(tmp_path_factory, flavour, chunk, span_size):
    blob = gzips.PURE[flavour](TAR)
    index = await index_blob(
        tmp_path_factory.mktemp("x"), blob, GZIP, chunk=max(chunk, 500), span_size=span_size
    )
    check(index, blob, TAR)


@pytest.mark.parametrize("chunk", [1, 1000, 65536, 1 << 20])
async def test_flat_blobs_are_cut_into_equal_spans(tmp_path, chunk):
    data = TAR[: 20_000 if chunk == 1 else None]
    index = await index_blob(tmp_path, data, IDENTITY, chunk=chunk, span_size=65536)
    check(index, data, data)
    lengths = [index.table.span(i).out_length for i in range(index.table.count)]
    assert lengths[:-1] == [65536] * (len(lengths) - 1)
    assert not (attempt(tmp_path) / CHECKPOINTS).exists()
    assert (attempt(tmp_path) / TOC).exists() == (chunk != 1)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072])
async def test_sizes_around_a_span_are_exact(tmp_path, size):
    data = content(size, 9)
    check(await index_blob(tmp_path, data, IDENTITY), data, data)


async def test_the_checkpoints_are_those_that_the_offline_command_writes(tmp_path):
    blob = gzips.member(TAR)
    await index_blob(tmp_path, blob, GZIP)
    built = build_table(blob, 65536)
    assert (attempt(tmp_path) / CHECKPOINTS).read_bytes() == encode(
        zip(built.points, built.windows, strict=True), 65536
    )


async def test_facts_tell_what_was_found(tmp_path):
    blob = gzips.members(TAR, 64 << 10)
    facts = (await index_blob(tmp_path, blob, GZIP)).facts
    assert (facts.blob, facts.blob_size, facts.codec) == (sha256(blob), len(blob), "gzip")
    assert facts.members == -(-len(TAR) // (64 << 10))
    assert (facts.zinfo, facts.contents_error) == (None, None)


# Promises


def run(tmp_path, blob, codec=GZIP, *, fed=None, supplied=None, **promise):
    """A pass that is told ``promise`` and fed ``fed``; its files stay only where it ends well."""
    fields = {"digest": sha256(blob), "size": len(blob), **promise}
    (tmp_path / "tmp").mkdir(exist_ok=True)
    store = FolderStore(tmp_path / "layers", tmp_path / "tmp")
    cutting = Cutting(codec, cut_name(codec.name, 65536), 65536, supplied)

    async def one():
        async with store.draft(LayerKey(fields["digest"], cutting.cut)) as draft:
            work = LayerPass(Promise(**fields), cutting, draft)
            try:
                feed(work, blob if fed is None else fed, 10_000)
                work.finish()
            finally:
                work.close()
            await draft.publish()

    asyncio.run(one())


BLOB = gzips.member(TAR)
BROKEN = [
    ({"digest": "sha256:" + "0" * 64}, None, BlobMismatch, "digest"),
    ({"diff_id": "sha256:" + "0" * 64}, None, DiffIdMismatch, "configuration"),
    ({"size": len(BLOB) + 1}, None, BlobMismatch, "ended after"),
    ({"size": len(BLOB) - 1}, None, BlobMismatch, "longer than"),
    ({}, BLOB[:-1], BlobMismatch, "ended after"),
    ({}, BLOB + b"\0", BlobMismatch, "longer than"),
    ({}, b"", BlobMismatch, "ended after"),
    ({"digest": sha256(BLOB[:-5]), "size": len(BLOB) - 5}, BLOB[:-5], CorruptStream, "trailer|cut|end|trunc"),
]


@pytest.mark.parametrize(("promise", "fed", "kind", "text"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_promise_is_named_and_leaves_nothing(tmp_path, promise, fed, kind, text):
    with pytest.raises(kind, match=text):
        run(tmp_path, BLOB, fed=fed, **promise)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_flat_blobs_keep_their_promises_too(tmp_path):
    with pytest.raises(BlobMismatch, match="digest"):
        run(tmp_path, TAR, IDENTITY, digest="sha256:" + "0" * 64)
    with pytest.raises(DiffIdMismatch):
        run(tmp_path, TAR, IDENTITY, diff_id="sha256:" + "0" * 64)
    run(tmp_path, TAR, IDENTITY, diff_id=sha256(TAR))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(BLOB) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_gets_through_a_pass(tmp_path_factory, at, bit):
    broken = bytearray(BLOB)
    broken[at] ^= 1 << bit
    with pytest.raises(BlobMismatch):
        run(tmp_path_factory.mktemp("x"), BLOB, fed=bytes(broken))


def test_no_thread_stays_behind(tmp_path):
    before = threading.active_count()
    for promise, fed, kind, _ in BROKEN:
        with pytest.raises(kind):
            run(tmp_path, BLOB, fed=fed, **promise)
    assert threading.active_count() == before


# Layers that are no tar


@pytest.mark.parametrize(
    ("data", "text"),
    [(content(5000, 4), ""), (TAR[:-2000], ""), (tar_of({"a": b"x"})[:512] + b"\xff" * 1024, "")],
    ids=["noise", "cut short", "a broken header"],
)
async def test_a_layer_that_is_no_tar_is_indexed_as_bytes_and_says_why(tmp_path, data, text):
    blob = gzips.member(data)
    index = await index_blob(tmp_path, blob, GZIP, diff_id=sha256(data))
    check(index, blob, data)
    if index.facts.contents_error is None:
        pytest.fail("a broken tar has a table of contents")
    assert index.facts.contents_error
    assert not (attempt(tmp_path) / TOC).exists()


# Supplied tables


def supplied(blob, points, windows, span_size=65536):
    return table(list(zip(points, windows, strict=True)), span_size)


async def test_a_supplied_table_cuts_the_spans(tmp_path):
    built = build_table(BLOB, 100_000)
    index = await index_blob(
        tmp_path, BLOB, GZIP, supplied=built.table(100_000), supplied_digest="sha256:" + "e" * 64
    )
    check(index, BLOB, TAR)
    assert [index.table.span(i).out_start for i in range(index.table.count)] == [
        p.out_offset for p in built.points
    ]
    assert index.facts.zinfo == "sha256:" + "e" * 64
    assert index.key.cut.startswith("zinfo-")


async def test_windows_may_be_zero_where_nothing_refers_to_them(tmp_path):
    built = build_table(BLOB, 65536)
    windows = [bytes(1000) + window[1000:] for window in built.windows]
    check(await index_blob(tmp_path, BLOB, GZIP, supplied=supplied(BLOB, built.points, windows)), BLOB, TAR)


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 32767), which=st.integers(1, 2))
async def test_a_wrong_byte_in_a_supplied_window_is_named(tmp_path_factory, at, which):
    built = build_table(BLOB, 65536)
    windows = [bytearray(window) for window in built.windows]
    windows[which][at] = (windows[which][at] + 1) % 256 or 2
    if windows[which][at] == built.windows[which][at]:
        return
    with pytest.raises(InvalidZinfo, match=f"checkpoint {which}: byte {at}"):
        await index_blob(
            tmp_path_factory.mktemp("x"),
            BLOB,
            GZIP,
            supplied=supplied(BLOB, built.points, map(bytes, windows)),
        )


@pytest.mark.parametrize("change", ["bits", "in", "out"])
async def test_a_checkpoint_that_is_none_is_refused(tmp_path, change):
    built = build_table(BLOB, 65536)
    points = list(built.points)
    point = points[1]
    points[1] = {
        "bits": point._replace(bits=(point.bits + 1) % 8),
        "in": point._replace(in_offset=point.in_offset + 1),
        "out": point._replace(out_offset=point.out_offset + 1),
    }[change]
    with pytest.raises(InvalidZinfo):
        await index_blob(tmp_path, BLOB, GZIP, supplied=supplied(BLOB, points, built.windows))


async def test_a_table_of_another_layer_is_refused(tmp_path):
    built = build_table(gzips.member(content(190_000, 7)), 65536)
    with pytest.raises(InvalidZinfo):
        await index_blob(tmp_path, BLOB, GZIP, supplied=built.table(65536))


async def test_the_index_tells_its_format_and_the_digests_of_its_files(tmp_path):
    index = await index_blob(tmp_path, BLOB, GZIP)
    files = {path.name: path.read_bytes() for path in attempt(tmp_path).iterdir()}
    facts = json.loads(files.pop("index.json"))
    assert facts["format"] == 2
    assert {name: f"{hashlib.sha256(data).hexdigest()}" for name, data in files.items()} == {
        name: file.sha256 for name, file in index.facts.files.items()
    }


@pytest.mark.parametrize("chunk", [999, 1 << 16])
async def test_the_leaves_are_those_of_the_decoded_bytes(tmp_path, chunk):
    await index_blob(tmp_path, BLOB, GZIP, chunk=chunk)
    blocks = [TAR[at : at + 4096].ljust(4096, b"\0") for at in range(0, len(TAR), 4096)]
    leaves = b"".join(hashlib.sha256(block).digest() for block in blocks)
    assert (attempt(tmp_path) / LEAVES).read_bytes() == leaves


# Objections are judged when the blob has its digest


def lying_table():
    """A table with a byte of a window that is not what lies before its checkpoint."""
    built = build_table(BLOB, 65536)
    windows = [bytearray(window) for window in built.windows]
    windows[1][100] ^= 0x41
    return supplied(BLOB, built.points, map(bytes, windows))


def test_a_bad_table_with_a_good_blob_is_the_tables_fault(tmp_path):
    with pytest.raises(InvalidZinfo, match="checkpoint 1"):
        run(tmp_path, BLOB, supplied=lying_table())


def test_a_bad_table_with_a_blob_that_was_changed_is_the_blobs_fault(tmp_path):
    broken = bytearray(BLOB)
    broken[-20] ^= 1
    with pytest.raises(BlobMismatch):
        run(tmp_path, BLOB, fed=bytes(broken), supplied=lying_table())


@pytest.mark.parametrize("at", [0, 3, 12, len(BLOB) // 2, len(BLOB) - 6])
def test_a_flipped_bit_is_not_taken_for_a_broken_layer_or_a_wrong_table(tmp_path, at):
    broken = bytearray(BLOB)
    broken[at] ^= 4
    table = build_table(BLOB, 65536).table(65536)
    for given_table in (None, table):
        with pytest.raises(BlobMismatch):
            run(tmp_path, BLOB, fed=bytes(broken), supplied=given_table)


def test_a_broken_layer_with_its_right_digest_is_broken(tmp_path):
    broken = bytearray(BLOB)
    broken[len(BLOB) // 2] ^= 4
    with pytest.raises(CorruptStream):
        run(tmp_path, bytes(broken))
