"""Codecs: whatever was indexed in whatever pieces is decoded span by span to the same bytes."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import CorruptStream, UnsupportedLayer
from gateway.gzran.zinfo import ZERO_WINDOW, Checkpoint
from gateway.layers.codec import GZIP, IDENTITY, codec_by_magic, codec_by_media_type, codec_of
from gateway.layers.table import UNKNOWN, Span
from tests.support import gzips, zinfo_tables
from tests.support.layers import content

OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs"


class Pass:
    """Indexes a blob and keeps what came of it."""

    def __init__(self, codec, blob, *, span_size=65536, chunk=1 << 16):
        self.codec, self.blob = codec, blob
        self.decoded = bytearray()
        self.cuts: list[tuple[Checkpoint, bytes]] = []
        indexer = codec.indexer(span_size, self._output, self._cut, None)
        for at in range(0, len(blob), chunk):
            indexer.feed(blob[at : at + chunk])
        self.members = indexer.finish()

    def _output(self, view):
        self.decoded += view

    def _cut(self, checkpoint, window):
        assert checkpoint.out_offset == len(self.decoded)
        self.cuts.append((checkpoint, window))

    def spans(self):
        ends = [(each.in_offset, each.out_offset) for each, _ in self.cuts[1:]]
        ends.append((len(self.blob), len(self.decoded)))
        for (checkpoint, _), (in_stop, out_stop) in zip(self.cuts, ends, strict=True):
            start = checkpoint.in_offset - (1 if checkpoint.bits else 0)
            yield Span(start, in_stop, checkpoint.out_offset, out_stop, checkpoint.bits, UNKNOWN, UNKNOWN)

    def decode(self, number, *, exact=True):
        span = list(self.spans())[number]
        fetched = self.blob[span.in_start : span.in_stop]
        window = self.cuts[number][1] or (ZERO_WINDOW if self.codec.windowed else b"")
        return self.codec.decode(span, fetched, window, first=number == 0, exact=exact)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 300_000),
    span_size=st.sampled_from([1, 4096, 65536, 1 << 20]),
    chunk=st.integers(1, 100_000),
)
def test_bytes_as_they_are_come_back_from_any_pieces(length, span_size, chunk):
    length = min(length, 500 * span_size)
    data = content(300_000)[:length]
    work = Pass(IDENTITY, data, span_size=span_size, chunk=max(chunk, length // 500 + 1))
    assert bytes(work.decoded) == data
    assert work.members == 0
    assert [each.out_offset for each, _ in work.cuts] == list(range(0, length, span_size))
    assert all(window == b"" for _, window in work.cuts)
    assert b"".join(work.decode(number) for number in range(len(work.cuts))) == data


@settings(max_examples=60, deadline=None)
@given(
    flavour=st.sampled_from(list(gzips.PURE)),
    length=st.integers(0, 300_000),
    span_size=st.sampled_from([65536, 100_000, 1 << 20]),
    chunk=st.integers(200, 400_000),
    exact=st.booleans(),
)
def test_a_gzip_of_any_encoder_comes_back_from_any_pieces(flavour, length, span_size, chunk, exact):
    data = content(300_000)[:length]
    work = Pass(GZIP, gzips.PURE[flavour](data), span_size=span_size, chunk=chunk)
    assert bytes(work.decoded) == data
    assert work.members >= 1
    for number, (checkpoint, window) in enumerate(work.cuts):
        before = data[max(0, checkpoint.out_offset - 32768) : checkpoint.out_offset]
        if number:
            assert window[len(window) - len(before) :] == before
    found = [bytes(work.decode(number, exact=exact)) for number in range(len(work.cuts))]
    assert b"".join(found) == data


def test_pieces_of_one_byte_cut_at_the_same_places():
    blob = gzips.member(content(150_000))
    assert Pass(GZIP, blob, chunk=1).cuts == Pass(GZIP, blob, chunk=1 << 30).cuts
    data = content(10_000)
    assert Pass(IDENTITY, data, span_size=999, chunk=1).cuts == Pass(IDENTITY, data, span_size=999).cuts


def test_members_are_counted():
    assert Pass(GZIP, gzips.member(b"one") + gzips.member(b"two")).members == 2


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:-8] + bytes(8), lambda b: b[:5]])
def test_a_gzip_that_breaks_its_own_checks_is_refused(change):
    with pytest.raises(CorruptStream):
        Pass(GZIP, change(gzip.compress(content(10_000))))


def test_a_table_of_checkpoints_is_of_no_use_to_bytes_as_they_are():
    table = zinfo_tables.table([(Checkpoint(10, 0, 0), ZERO_WINDOW)])
    with pytest.raises(ValueError, match="no use"):
        IDENTITY.indexer(65536, len, lambda *_: None, table)


def test_codecs_are_found_by_their_names():
    assert codec_of("gzip") is GZIP
    assert codec_of("identity") is IDENTITY
    for name in ("zstd", "", "GZIP"):
        with pytest.raises(UnsupportedLayer, match="cannot decode"):
            codec_of(name)


@pytest.mark.parametrize(
    ("media_type", "codec"),
    [
        (f"{OCI}+gzip", GZIP),
        (f"{DOCKER}.diff.tar.gzip", GZIP),
        (f"{DOCKER}.foreign.diff.tar.gzip", GZIP),
        ("application/x-gzip", GZIP),
        ("application/gzip", GZIP),
        (OCI, IDENTITY),
        (f"{DOCKER}.diff.tar", IDENTITY),
        ("application/x-tar", IDENTITY),
        ("application/octet-stream", None),
        ("", None),
    ],
)
def test_a_media_type_names_the_codec_or_says_nothing(media_type, codec):
    assert codec_by_media_type(media_type) is codec


def test_zstd_is_refused_by_name_and_by_its_first_bytes():
    with pytest.raises(UnsupportedLayer, match="zstd"):
        codec_by_media_type(f"{OCI}+zstd")
    with pytest.raises(UnsupportedLayer, match="zstd"):
        codec_by_magic(b"\x28\xb5\x2f\xfd rest")


@pytest.mark.parametrize(
    ("head", "codec"), [(b"\x1f\x8b\x08", GZIP), (b"\x1f", IDENTITY), (b"", IDENTITY), (b"etc/", IDENTITY)]
)
def test_first_bytes_show_the_codec(head, codec):
    assert codec_by_magic(head) is codec
