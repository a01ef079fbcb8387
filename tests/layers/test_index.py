"""An index: its name, its two small files, and its windows, read one by one."""

from __future__ import annotations

import hashlib

import pytest

from gateway.errors import IndexDamaged, NewerFormat, UnsupportedLayer
from gateway.gzran.zinfo import WINDOW_BYTES
from gateway.layers.codec import GZIP, IDENTITY
from gateway.layers.index import FACTS, SPANS, IndexRow, parse_index
from gateway.layers.key import FORMAT, cut_name
from gateway.layers.table import UNKNOWN, SpanTable
from tests.support import gzips
from tests.support.layers import content, index_blob

DATA = content(200_000)
BLOB = gzips.member(DATA)


class NoWindows:
    """Nothing is to be read here."""

    def read(self, offset, length):
        raise AssertionError((offset, length))


@pytest.fixture
async def index(tmp_path):
    return await index_blob(tmp_path, BLOB, GZIP)


@pytest.fixture
def files(index, tmp_path):
    (folder,) = (tmp_path / "layers").glob("*/*/*")
    return {name: (folder / name).read_bytes() for name in (FACTS, SPANS)}


def parse(index, facts, spans, row=None):
    row = row or IndexRow(attempt="a", sha256=hashlib.sha256(facts).hexdigest(), bytes=1)
    return parse_index(index.key, row, facts, spans, NoWindows())


def test_both_files_make_an_index(index, files):
    again = parse(index, files[FACTS], files[SPANS])
    assert again.facts == index.facts
    assert again.table.records == index.table.records
    assert again.table.size == again.facts.size == len(DATA)
    assert again.codec is GZIP


def test_windows_are_what_lies_before_a_span(index):
    assert index.table.count > 2
    for number in range(1, index.table.count):
        start, _ = index.table.bounds(number)
        assert index.window(number) == DATA[start - WINDOW_BYTES : start]


def test_a_proven_span_needs_no_next_window_and_the_last_has_none(index):
    assert [index.next_window(number) for number in range(index.table.count)] == [None] * index.table.count
    count = index.table.count
    index.table = SpanTable.of(
        index.table.span(number)._replace(in_sha256=UNKNOWN, out_sha256=UNKNOWN) for number in range(count)
    )
    found = [index.next_window(number) for number in range(count)]
    assert found == [*(index.window(number) for number in range(1, count)), None]


async def test_bytes_that_are_stored_as_they_are_have_no_windows(tmp_path):
    index = await index_blob(tmp_path / "plain", DATA, IDENTITY)
    assert index.window(1) == b""
    assert index.codec is IDENTITY


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"{}",
        lambda text: text[:-5],
        lambda text: text.replace(b'"size": 200000', b'"size": 198976'),
    ],
    ids=["empty", "nothing in it", "cut short", "another size"],
)
def test_facts_without_the_digest_that_the_catalog_holds_are_damaged(index, files, change):
    with pytest.raises(IndexDamaged, match="the catalog holds"):
        parse(index, change(files[FACTS]), files[SPANS], index.row)


@pytest.mark.parametrize(
    "change",
    [lambda _: b"", lambda data: data[:-104], lambda data: data[:-1], lambda data: b"\x01" + data[1:]],
    ids=["empty", "a record less", "a byte less", "a bit flipped"],
)
def test_a_table_without_its_digest_is_damaged(index, files, change):
    with pytest.raises(IndexDamaged, match="does not have its digest"):
        parse(index, files[FACTS], change(files[SPANS]), index.row)


@pytest.mark.parametrize(
    "facts",
    [b"", b"{}", b"[]", b'{"blob": 1}', b"\xff"],
    ids=["empty", "object", "list", "a field", "no text"],
)
def test_facts_that_cannot_be_understood_are_damaged_whatever_their_digest(index, files, facts):
    with pytest.raises(IndexDamaged, match="cannot be understood"):
        parse(index, facts, files[SPANS])


def test_facts_that_do_not_name_the_table_are_damaged(index, files):
    facts = index.facts.model_copy(update={"files": {}}).model_dump_json().encode()
    with pytest.raises(IndexDamaged, match="cannot be understood"):
        parse(index, facts, files[SPANS])


def test_a_table_that_breaks_its_rules_is_damaged_also_with_a_digest(index, files):
    spans = files[SPANS][104:]
    named = index.facts.files[SPANS].model_copy(update={"sha256": hashlib.sha256(spans).hexdigest()})
    facts = index.facts.model_copy(update={"files": {SPANS: named}}).model_dump_json().encode()
    with pytest.raises(IndexDamaged, match="cannot be understood"):
        parse(index, facts, spans)


def test_an_index_of_a_later_version_is_not_damaged(index, files):
    facts = index.facts.model_copy(update={"format": FORMAT + 1}).model_dump_json().encode()
    with pytest.raises(NewerFormat):
        parse(index, facts, files[SPANS])


def test_a_codec_of_a_later_version_is_not_damage(index, files):
    facts = index.facts.model_copy(update={"codec": "zstd"}).model_dump_json().encode()
    with pytest.raises(UnsupportedLayer):
        parse(index, facts, files[SPANS])


def test_the_name_of_a_cut_tells_how_it_is_cut():
    names = {
        cut_name("gzip", 1 << 20),
        cut_name("gzip", 1 << 22),
        cut_name("identity", 1 << 20),
        cut_name("gzip", 1 << 20, "sha256:" + "a" * 64),
        cut_name("gzip", 1 << 20, "sha256:" + "b" * 64),
    }
    assert len(names) == 5
    assert all(name.endswith(f"-v{FORMAT}") for name in names)
