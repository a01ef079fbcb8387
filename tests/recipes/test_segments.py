"""The address space: contiguous, padded, and refused when it does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.erofs.ondisk import ALIGN_BYTES
from gateway.errors import InvalidMetadata
from gateway.recipes.segments import (
    BLOCK_BYTES,
    Piece,
    Segment,
    SegmentMap,
    Slot,
    bare,
    concatenate,
    identity,
    padded,
    place,
    total,
)

KINDS = ["gzip", "tar", "raw", "metadata"]
PIECES = st.builds(
    Piece,
    st.sampled_from(KINDS),
    st.one_of(st.integers(0, 2000), st.sampled_from([511, 512, 4095, 4096, 4097, 1 << 30, 1 << 40])),
    st.sampled_from("abcdef"),
    st.sampled_from(["i", "j"]),
)


def check_contiguous(segments):
    end = 0
    for segment in segments:
        assert segment.offset == end
        assert segment.length > 0
        assert (segment.digest is None) == (segment.cut is None) == (segment.kind == "zero")
        end += segment.length
    assert end % ALIGN_BYTES == 0
    assert total(segments) == end


@given(st.lists(PIECES, max_size=6))
def test_pieces_lie_one_behind_the_other_each_padded(pieces):
    segments = concatenate(pieces)
    check_contiguous(segments)
    assert total(segments) == sum(padded(piece.size) for piece in pieces)
    shown = [(s.kind, s.length, s.digest) for s in segments if s.kind != "zero"]
    assert shown == [(p.kind, p.size, p.digest) for p in pieces if p.size]
    assert all(s.offset % ALIGN_BYTES == 0 for s in segments if s.kind != "zero")
    assert all(s.length < ALIGN_BYTES for s in segments if s.kind == "zero")


@given(st.lists(PIECES, min_size=1, max_size=6), st.data())
def test_the_map_finds_the_segment_of_every_byte(pieces, data):
    segments = concatenate(pieces)
    if not segments:
        return
    found = SegmentMap(segments)
    offset = data.draw(st.integers(0, found.size - 1))
    naive = [i for i, s in enumerate(segments) if s.offset <= offset < s.offset + s.length]
    assert [found.find(offset)] == naive


@pytest.mark.parametrize("offset", [-1, 512])
def test_the_map_refuses_what_lies_outside(offset):
    with pytest.raises(IndexError):
        SegmentMap([Segment("raw", 0, 512, "a", "i")]).find(offset)


@given(st.integers(0, 1 << 60))
def test_padding_is_the_least_that_gives_whole_blocks(size):
    assert padded(size) % ALIGN_BYTES == 0
    assert 0 <= padded(size) - size < ALIGN_BYTES
    assert padded(size, BLOCK_BYTES) % BLOCK_BYTES == 0
    assert 0 <= padded(size, BLOCK_BYTES) - size < BLOCK_BYTES


@st.composite
def placements(draw):
    """Metadata, and layers with slots that fit them, in any order."""
    metadata = Piece("metadata", draw(st.integers(1, 5000)), "m", "raw")
    layers, slots, end = [], [], padded(metadata.size)
    for number in range(draw(st.integers(0, 5))):
        size = draw(st.integers(0, 5000))
        end += draw(st.integers(0, 3)) * 512
        whole = padded(size, BLOCK_BYTES)
        length = draw(st.sampled_from([whole, whole // 1024 * 512]))
        layers.append(Piece("gzip", size, f"l{number}", "i"))
        slots.append(Slot(end, length))
        end += length
    order = draw(st.permutations(range(len(layers))))
    return metadata, [slots[i] for i in order], [layers[i] for i in order]


@given(placements())
def test_layers_lie_where_the_device_table_says(placement):
    metadata, slots, layers = placement
    segments = place(metadata, slots, layers)
    check_contiguous(segments)
    assert segments[0] == Segment("metadata", 0, metadata.size, "m", "raw")
    for slot, layer in zip(slots, layers, strict=True):
        length = min(slot.length, layer.size)
        expected = [Segment("gzip", slot.offset, length, layer.digest, "i")] if length else []
        assert [s for s in segments if s.digest == layer.digest] == expected
        assert not length or total(segments) >= slot.offset + length


@pytest.mark.parametrize(
    ("slots", "sizes", "text"),
    [
        ([], [100], "0 slots for 1 layers"),
        ([Slot(4096, 512)] * 2, [100], "2 slots for 1 layers"),
        ([Slot(0, 512)], [512], "inside of what is before it"),
        ([Slot(512, 512)], [512], "inside of what is before it"),
        ([Slot(4096, 1024)], [512], "of another layer"),
        ([Slot(4096, 1024), Slot(4608, 512)], [1024, 512], "inside of what is before it"),
    ],
)
def test_a_device_table_that_does_not_fit_is_refused(slots, sizes, text):
    layers = [Piece("tar", size, f"l{i}", "i") for i, size in enumerate(sizes)]
    with pytest.raises(InvalidMetadata, match=text):
        place(Piece("metadata", 1000, "m", "raw"), slots, layers)


@given(st.lists(PIECES, min_size=1, max_size=5))
def test_the_entity_tag_names_content_and_arrangement_but_not_the_cut(pieces):
    segments = concatenate(pieces)
    tag = identity(segments)
    assert tag.startswith('"')
    assert tag.endswith('"')
    other_cut = [Piece(p.kind, p.size, p.digest, "k") for p in pieces]
    assert identity(concatenate(other_cut)) == tag
    longer = [Piece(pieces[0].kind, pieces[0].size + 1, pieces[0].digest, "i"), *pieces[1:]]
    assert identity(concatenate(longer)) != tag
    if pieces[0].size:
        other = [Piece(pieces[0].kind, pieces[0].size, "z", "i"), *pieces[1:]]
        assert identity(concatenate(other)) != tag


@given(PIECES)
def test_a_single_layer_as_bytes_has_its_exact_length(piece):
    segments = bare(piece)
    assert total(segments) == piece.size
    assert len(segments) == bool(piece.size)
