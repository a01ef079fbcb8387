"""One pass over a layer of any encoder in any pieces: a right index, or a broken promise by name."""

from __future__ import annotations

import hashlib
import json
import threading

import pytest
from gateway.spans.decode import decode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.erofs.toc import read_toc
from gateway.errors import BlobMismatch, CorruptStream, DiffIdMismatch, InvalidZinfo
from gateway.ingest.layer_pass import LayerPass, Promise
from gateway.layers.folder import LayerFolders
from gateway.layers.index import CHECKPOINTS, TOC, LayerIndex
from tests.support import gzips
from tests.support.layers import content, feed, index_blob, sha256, tar_of
from tests.support.zinfo_tables import build as build_table
from tests.support.zinfo_tables import encode, table

FILES = {"one": content(150_000, 1), "two": b"", "three/four": content(40_000, 2)}
TAR = tar_of(FILES)


def check(index, blob, decoded):
    """Every span of the index decodes from the blob to its bytes and proves itself."""
    found = b""
    for number in range(index.table.count):
        span = index.table.span(number)
        assert span.proven
        window = None if index.windows is None else index.windows.window(number)
        following = None
        if index.windows is not None and number + 1 < index.table.count:
            following = index.windows.window(number + 1)
        piece = blob[span.in_start : span.in_stop]
        assert hashlib.sha256(piece).digest() == span.in_sha256
        found += bytes(decode(span, piece, window, following, first=number == 0, where="here"))
    assert found == decoded
    assert index.facts.size == len(decoded)
    assert index.facts.sha256 == sha256(decoded)


@pytest.mark.parametrize("chunk", [1 << 20, 65_537, 997])
@pytest.mark.parametrize("flavour", list(gzips.PURE))
def test_every_flavour_in_any_pieces_gives_the_same_right_index(tmp_path, flavour, chunk):
    blob = gzips.PURE[flavour](TAR)
    index = index_blob(tmp_path / "a", blob, "gzip", chunk=chunk, diff_id=sha256(TAR))
    check(index, blob, TAR)
    assert [entry.path for entry in read_toc((index.folder / TOC).read_bytes())] == [
        b"one",
        b"two",
        b"three/four",
    ]
    whole = index_blob(tmp_path / "b", blob, "gzip", chunk=1 << 30)
    for name in sorted(path.name for path in whole.folder.iterdir()):
        assert (index.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.real
@pytest.mark.parametrize("flavour", list(gzips.PROGRAMS))
def test_the_programs_that_people_use_give_a_right_index(tmp_path, flavour):
    blob = gzips.PROGRAMS[flavour](TAR)
    check(index_blob(tmp_path, blob, "gzip", chunk=10_000, diff_id=sha256(TAR)), blob, TAR)


def test_pieces_of_one_byte_are_enough(tmp_path):
    tar = tar_of({"a": content(3000, 3)})
    blob = gzips.member(tar)
    check(index_blob(tmp_path, blob, "gzip", chunk=1, diff_id=sha256(tar)), blob, tar)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(gzips.PURE)), st.integers(1, 200_000), st.sampled_from([65536, 100_000, 1 << 20]))
def test_any_chunking_and_span_size_gives_a_right_index(tmp_path_factory, flavour, chunk, span_size):
    blob = gzips.PURE[flavour](TAR)
    index = index_blob(tmp_path_factory.mktemp("x"), blob, "gzip", chunk=max(chunk, 500), span_size=span_size)
    check(index, blob, TAR)


@pytest.mark.parametrize("chunk", [1, 1000, 65536, 1 << 20])
@pytest.mark.parametrize("kind", ["tar", "raw"])
def test_flat_blobs_are_cut_into_equal_spans(tmp_path, kind, chunk):
    data = TAR[: 20_000 if chunk == 1 else None]
    index = index_blob(tmp_path, data, kind, chunk=chunk, span_size=65536)
    check(index, data, data)
    lengths = [index.table.span(i).out_length for i in range(index.table.count)]
    assert lengths[:-1] == [65536] * (len(lengths) - 1)
    assert not (index.folder / CHECKPOINTS).exists()
    assert (index.folder / TOC).exists() == (kind == "tar" and chunk != 1)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072])
def test_sizes_around_a_span_are_exact(tmp_path, size):
    data = content(size, 9)
    check(index_blob(tmp_path, data, "raw"), data, data)


def test_the_checkpoints_are_those_that_the_offline_command_writes(tmp_path):
    blob = gzips.member(TAR)
    index = index_blob(tmp_path, blob, "gzip")
    built = build_table(blob, 65536)
    assert (index.folder / CHECKPOINTS).read_bytes() == encode(
        zip(built.points, built.windows, strict=True), 65536
    )


def test_facts_tell_what_was_found(tmp_path):
    blob = gzips.members(TAR, 64 << 10)
    facts = index_blob(tmp_path, blob, "gzip").facts
    assert (facts.blob, facts.blob_size, facts.kind) == (sha256(blob), len(blob), "gzip")
    assert facts.members == -(-len(TAR) // (64 << 10))
    assert (facts.zinfo, facts.toc_error) == (None, None)


# Promises


def run(tmp_path, blob, kind="gzip", *, fed=None, **promise):
    fields = {"digest": sha256(blob), "size": len(blob), **promise}
    folders = LayerFolders(tmp_path)
    with folders.begin(fields["digest"], "index") as folder:
        work = LayerPass(Promise(**fields), kind, 65536, folder)
        try:
            feed(work, blob if fed is None else fed, 10_000)
            work.finish()
        finally:
            work.close()


BLOB = gzips.member(TAR)
BROKEN = [
    ({"digest": "sha256:" + "0" * 64}, None, BlobMismatch, "digest"),
    ({"diff_id": "sha256:" + "0" * 64}, None, DiffIdMismatch, "configuration"),
    ({"size": len(BLOB) + 1}, None, BlobMismatch, "ended after"),
    ({"size": len(BLOB) - 1}, None, BlobMismatch, "longer than"),
    ({}, BLOB[:-1], BlobMismatch, "ended after"),
    ({}, BLOB + b"\0", BlobMismatch, "longer than"),
    ({}, b"", BlobMismatch, "ended after"),
    ({"size": len(BLOB) - 5}, BLOB[:-5], CorruptStream, "trailer|cut|end|trunc"),
]


@pytest.mark.parametrize(("promise", "fed", "kind", "text"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_promise_is_named_and_leaves_nothing(tmp_path, promise, fed, kind, text):
    with pytest.raises(kind, match=text):
        run(tmp_path, BLOB, fed=fed, **promise)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["tar", "raw"])
def test_flat_blobs_keep_their_promises_too(tmp_path, kind):
    with pytest.raises(BlobMismatch, match="digest"):
        run(tmp_path, TAR, kind, digest="sha256:" + "0" * 64)
    with pytest.raises(DiffIdMismatch):
        run(tmp_path, TAR, kind, diff_id="sha256:" + "0" * 64)
    run(tmp_path, TAR, kind, diff_id=sha256(TAR))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(BLOB) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_gets_through_a_pass(tmp_path_factory, at, bit):
    broken = bytearray(BLOB)
    broken[at] ^= 1 << bit
    with pytest.raises((CorruptStream, BlobMismatch, DiffIdMismatch)):
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
def test_a_layer_that_is_no_tar_is_indexed_as_bytes_and_says_why(tmp_path, data, text):
    blob = gzips.member(data)
    index = index_blob(tmp_path, blob, "gzip", diff_id=sha256(data))
    check(index, blob, data)
    if index.facts.toc_error is None:
        pytest.fail("a broken tar has a table of contents")
    assert index.facts.toc_error
    assert not (index.folder / TOC).exists()


# Supplied tables


def supplied(blob, points, windows, span_size=65536):
    return table(list(zip(points, windows, strict=True)), span_size)


def test_a_supplied_table_cuts_the_spans(tmp_path):
    built = build_table(BLOB, 100_000)
    index = index_blob(
        tmp_path, BLOB, "gzip", supplied=built.table(100_000), supplied_digest="sha256:" + "e" * 64
    )
    check(index, BLOB, TAR)
    assert [index.table.span(i).out_start for i in range(index.table.count)] == [
        p.out_offset for p in built.points
    ]
    assert index.facts.zinfo == "sha256:" + "e" * 64
    assert index.index_id.startswith("zinfo-")


def test_windows_may_be_zero_where_nothing_refers_to_them(tmp_path):
    built = build_table(BLOB, 65536)
    windows = [bytes(1000) + window[1000:] for window in built.windows]
    check(index_blob(tmp_path, BLOB, "gzip", supplied=supplied(BLOB, built.points, windows)), BLOB, TAR)


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 32767), which=st.integers(1, 2))
def test_a_wrong_byte_in_a_supplied_window_is_named(tmp_path_factory, at, which):
    built = build_table(BLOB, 65536)
    windows = [bytearray(window) for window in built.windows]
    windows[which][at] = (windows[which][at] + 1) % 256 or 2
    if windows[which][at] == built.windows[which][at]:
        return
    with pytest.raises(InvalidZinfo, match=f"checkpoint {which}: byte {at}"):
        index_blob(
            tmp_path_factory.mktemp("x"),
            BLOB,
            "gzip",
            supplied=supplied(BLOB, built.points, map(bytes, windows)),
        )


@pytest.mark.parametrize("change", ["bits", "in", "out"])
def test_a_checkpoint_that_is_none_is_refused(tmp_path, change):
    built = build_table(BLOB, 65536)
    points = list(built.points)
    point = points[1]
    points[1] = {
        "bits": point._replace(bits=(point.bits + 1) % 8),
        "in": point._replace(in_offset=point.in_offset + 1),
        "out": point._replace(out_offset=point.out_offset + 1),
    }[change]
    with pytest.raises(InvalidZinfo):
        index_blob(tmp_path, BLOB, "gzip", supplied=supplied(BLOB, points, built.windows))


def test_a_table_of_another_layer_is_refused(tmp_path):
    built = build_table(gzips.member(content(190_000, 7)), 65536)
    with pytest.raises(InvalidZinfo):
        index_blob(tmp_path, BLOB, "gzip", supplied=built.table(65536))


def test_the_index_survives_its_json(tmp_path):
    index = index_blob(tmp_path, BLOB, "gzip")
    facts = json.loads((index.folder / "index.json").read_text())
    assert facts["format"] == 1
    assert LayerIndex.open(index.folder).facts == index.facts
