"""One flipped byte anywhere: what a client gets instead of it. Nothing is cached here, so that every read looks."""

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.gzran.zinfo import HEADER_BYTES, RECORD_BYTES, WINDOW_BYTES
from gateway.layers.index import CHECKPOINTS, SPANS
from gateway.layers.table import SpanTable
from tests.acceptance.conftest import Figure
from tests.support.gateway import Document, Gateway
from tests.support.gzips import member
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.processes import wait_until


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, small_tar: bytes) -> OciLayout:
    layout = OciLayout(tmp_path_factory.mktemp("layout"))
    layout.add_image([gzip_layer(member(small_tar), small_tar)], tag="one")
    return layout


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, layout: OciLayout) -> Iterator[Gateway]:
    settings = {"span_size": "262144", "memory_cache": 0, "disk_cache": 0}
    with Gateway(tmp_path_factory.mktemp("gateway"), oci_roots=[layout.folder], settings=settings) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def device(gateway: Gateway, layout: OciLayout) -> Document:
    device = gateway.register("one", {"source": {"image": f"oci:{layout.folder}:one"}})
    assert device["state"] == "ready", device["error"]
    return device


@pytest.fixture(scope="module")
def spans(gateway: Gateway, device: Document) -> SpanTable:
    return SpanTable((gateway.index_folder(device["segments"][1]["digest"]) / SPANS).read_bytes())


@contextlib.contextmanager
def flipped(path: Path, offset: int) -> Iterator[None]:
    """The file with one byte changed, in place: whoever has it open sees it."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)
        for value in (bytes([byte[0] ^ 0x41]), byte):
            file.seek(offset)
            file.write(value)
            if value != byte:
                yield


def shown(gateway: Gateway, device: Document, tar: bytes, span: tuple[int, int]) -> tuple[int, str]:
    """Status and code of a read of the middle of a span; if bytes came, they are the right ones."""
    front = device["segments"][1]["offset"]
    start, stop = span[0], min(span[0] + 100_000, span[1])
    answer = gateway.get(device["name"], front + start, front + stop)
    if answer.status_code == 206:
        assert answer.content == tar[start:stop]
        return 206, ""
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_budgets_of_nothing_serve_right_bytes(gateway: Gateway, device: Document, small_tar: bytes) -> None:
    front = device["segments"][1]["offset"]
    for _ in range(2):
        assert gateway.get("one", front, front + len(small_tar)).content == small_tar
    state = gateway.http.get("/v1/cache").json()
    assert (state["memory"]["used_bytes"], state["disk"]["used_bytes"]) == (0, 0)
    assert state["disk_errors"] == {}
    assert gateway.span_files() == gateway.temporary_files() == []


def test_in_the_registry_s_blob_it_is_a_mismatch_and_the_device_is_degraded_until_it_is_gone(
    gateway: Gateway,
    layout: OciLayout,
    device: Document,
    spans: SpanTable,
    small_tar: bytes,
    figure: Figure,
) -> None:
    blob = layout.blob_path(device["segments"][1]["digest"])
    chance = random.Random(1)
    flips = 0
    for number in range(spans.count):
        span = spans.span(number)
        for at in (span.in_start, span.in_stop - 1, chance.randrange(span.in_start, span.in_stop)):
            with flipped(blob, at):
                answer = shown(gateway, device, small_tar, spans.bounds(number))
            assert answer == (502, "span_mismatch"), (number, at)
            flips += 1
    degraded = gateway.show("one")
    assert (degraded["state"], degraded["health"]) == ("ready", "degraded")
    assert degraded["error"]["code"] == "span_mismatch"
    assert all(
        shown(gateway, device, small_tar, spans.bounds(number)) == (206, "") for number in range(spans.count)
    )
    healthy = gateway.show("one")
    assert (healthy["health"], healthy["error"]) == ("ok", None)
    figure("flipped bytes of the blob: reads refused (502 span_mismatch)", flips)


def flip(path: Path, offset: int) -> None:
    """Change one byte for good."""
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 0x41]), offset)


def test_in_a_local_checkpoint_it_is_noticed_wherever_it_matters_and_mended(
    gateway: Gateway, device: Document, spans: SpanTable, small_tar: bytes, figure: Figure
) -> None:
    """A window's byte that no match of the span refers to changes nothing; every other one is noticed."""
    digest = device["segments"][1]["digest"]
    good = (gateway.index_folder(digest) / CHECKPOINTS).read_bytes()
    chance = random.Random(2)
    mended = harmless = 0
    for number in range(1, spans.count):
        window = HEADER_BYTES + (number + 1) * RECORD_BYTES - WINDOW_BYTES
        last_kilobyte = WINDOW_BYTES - chance.randint(1, 1024)
        for place in (last_kilobyte, (WINDOW_BYTES - 1) * (number % 2), chance.randrange(WINDOW_BYTES)):
            folder = gateway.index_folder(digest)
            assert (folder / CHECKPOINTS).read_bytes() == good
            flip(folder / CHECKPOINTS, window + place)
            assert shown(gateway, device, small_tar, spans.bounds(number)) == (206, "")
            if gateway.index_folder(digest) == folder:
                harmless += 1
                flip(folder / CHECKPOINTS, window + place)
            else:
                mended += 1
    assert mended >= spans.count // 2
    assert gateway.show("one")["etag"] == device["etag"]
    figure("flipped bytes of local checkpoints: mended / harmless / wrong", f"{mended} / {harmless} / 0")


def test_in_generated_metadata_it_is_noticed_and_mended(
    gateway: Gateway, device: Document, figure: Figure
) -> None:
    front = device["segments"][0]
    path = gateway.data_dir / "artifacts/sha256" / front["digest"].removeprefix("sha256:")
    good = path.read_bytes()
    chance = random.Random(3)
    places = [0, 1024, front["length"] - 1, *(chance.randrange(front["length"]) for _ in range(4))]
    for place in places:
        gateway.drop_caches()
        flip(path, place)
        download = gateway.http.get(f"/v1/artifacts/{front['digest']}")
        assert (download.status_code, download.json()["code"]) == (503, "artifact_damaged")
        answer = gateway.get("one", 0, front["length"])
        assert (answer.status_code, answer.content) == (206, good)
        assert gateway.http.get(f"/v1/artifacts/{front['digest']}").content == good
    figure("flipped bytes of metadata: mended", len(places))


def test_in_an_uploaded_artifact_it_delays_the_registration_until_it_is_uploaded_again(
    gateway: Gateway, layout: OciLayout, device: Document
) -> None:
    metadata = gateway.http.get(f"/v1/artifacts/{device['segments'][0]['digest']}").content
    # The same image but for its volume name would do as well; bytes behind the end are simplest.
    digest = gateway.upload(metadata + bytes(4096))
    path = gateway.data_dir / "artifacts/sha256" / digest.removeprefix("sha256:")
    body = {"source": {"image": f"oci:{layout.folder}:one"}, "layer": {"index": 0}, "metadata": digest}
    flip(path, len(metadata) + 7)
    assert gateway.http.put("/v1/devices/damaged", json=body).status_code == 202
    wait_until(lambda: (gateway.show("damaged")["progress"] or {}).get("error"), what="the wait")
    waiting = gateway.show("damaged")
    assert (waiting["state"], waiting["progress"]["phase"]) == ("indexing", "waiting")
    assert waiting["progress"]["error"]["code"] == "artifact_damaged"
    assert gateway.upload(metadata + bytes(4096)) == digest
    settled = gateway.settled("damaged")
    # It addresses another device than these layers make, which is said once it can be read.
    assert settled["error"]["code"] == "invalid_metadata"


def test_in_the_span_table_it_is_noticed_when_the_index_is_opened_and_mended(
    gateway: Gateway, device: Document, spans: SpanTable, small_tar: bytes, figure: Figure
) -> None:
    digest = device["segments"][1]["digest"]
    front = device["segments"][1]["offset"]
    places = [0, 75, len(spans.records) - 1, random.Random(4).randrange(len(spans.records))]
    for place in places:
        gateway.drop_caches()
        gateway.stop()
        flip(gateway.index_folder(digest) / SPANS, place)
        gateway.start()
        answer = gateway.get("one", front, front + len(small_tar))
        assert (answer.status_code, answer.content) == (206, small_tar)
        assert (gateway.index_folder(digest) / SPANS).read_bytes() == spans.records
        assert gateway.show("one")["etag"] == device["etag"]
    figure("flipped bytes of span tables: mended", len(places))


def test_in_a_cached_span_it_is_a_miss(
    tmp_path: Path, layout: OciLayout, device: Document, small_tar: bytes, figure: Figure
) -> None:
    """With a memory of nothing every read looks at the disk tier."""
    settings = {"span_size": "262144", "memory_cache": 0}
    with Gateway(tmp_path / "other", oci_roots=[layout.folder], settings=settings) as gateway:
        body = {"source": {"image": f"oci:{layout.folder}:one"}, "layout": "tar", "layer": {"index": 0}}
        assert gateway.register("cached", body)["state"] == "ready"
        assert gateway.get("cached", 0, len(small_tar)).content == small_tar
        wait_until(lambda: len(gateway.span_files()) >= 16, what="the disk tier")
        files = gateway.span_files()
        good = {path: path.read_bytes() for path in files}
        chance = random.Random(5)
        for path in files:
            size = path.stat().st_size
            for place in (0, 20, 41, 79, 80, size - 1, chance.randrange(80, size)):
                content = bytearray(good[path])
                content[place] ^= 0x10
                path.write_bytes(content)
                number = int(path.stem, 16)
                start = number * len(small_tar) // len(files)
                with gateway.reader("cached") as reader:
                    assert reader.differences(small_tar, [(start, start + 50_000)]) == []

            def repaired(path: Path = path) -> bool:
                # A reader who joins a fetch that is not over yet does not look at the file: the next one does.
                assert gateway.get("cached", 0, len(small_tar)).content == small_tar
                return path.exists() and path.read_bytes() == good[path]

            wait_until(repaired, what="the repair")
        path.write_bytes(good[path][:-100])
        assert gateway.get("cached", 0, len(small_tar)).content == small_tar
        figure("flipped bytes of cached spans: reads served from upstream", len(files) * 7)
        assert gateway.temporary_files() == []
