"""Checkpoint tables that somebody hands in: made by the command line, in both versions, true and false ones."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.gzran.zinfo import HEADER_BYTES, RECORD_BYTES, WINDOW_BYTES
from tests.acceptance.conftest import Figure, random_ranges
from tests.support.debianroot import debian_root_tar_gz
from tests.support.faultregistry import FaultRegistry, StoredBlob
from tests.support.gateway import Gateway, around, cli
from tests.support.gzips import EXTRA_OF_18_BYTES, member
from tests.support.threadedregistry import Held
from tests.support.zinfo_tables import build, encode

SPAN = 1 << 18


@pytest.fixture(scope="module")
def layer(faulty: FaultRegistry, small_tar: bytes) -> StoredBlob:
    """A layer with a gzip header of 30 bytes, in the registry as ``team/thirty``."""
    return faulty.add_image("team/thirty", [member(small_tar, extra=EXTRA_OF_18_BYTES)]).layers[0]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, layer: StoredBlob) -> bytes:
    """The layer's zinfo, version 2, by the command line."""
    folder = tmp_path_factory.mktemp("zinfo")
    (folder / "layer.tar.gz").write_bytes(layer.content)
    made = cli("index", "build", folder / "layer.tar.gz", "-o", folder / "zinfo", "--span-size", "256KiB")
    assert made.returncode == 0, made.stderr
    return (folder / "zinfo").read_bytes()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


def body(faulty: FaultRegistry, zinfo: str, verify: str, repository: str = "team/thirty") -> dict:
    source = {"image": f"{faulty.host}/{repository}:latest", "insecure": True}
    return {"source": source, "layout": "tar", "layer": {"index": 0}, "zinfo": zinfo, "verify": verify}


def edges(table: bytes) -> list[int]:
    count = int.from_bytes(table[:4], "little")
    starts = [HEADER_BYTES + number * RECORD_BYTES + 8 for number in range(count)]
    return [int.from_bytes(table[start : start + 8], "little") for start in starts]


@pytest.mark.real
def test_building_an_index_twice_gives_the_same_bytes(tmp_path: Path, figure: Figure) -> None:
    blob = debian_root_tar_gz()
    tables = []
    for name in ("one", "two"):
        made = cli("index", "build", blob, "-o", tmp_path / name, "--span-size", "4MiB")
        assert made.returncode == 0, made.stderr
        tables.append((tmp_path / name).read_bytes())
    assert tables[0] == tables[1]
    assert len(tables[0]) == HEADER_BYTES + int.from_bytes(tables[0][:4], "little") * RECORD_BYTES
    figure("zinfo of the Debian root, 4 MiB spans: bytes", len(tables[0]))


@pytest.mark.parametrize("verify", ["before", "background"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_supplied_table_serves_right_bytes_behind_a_long_gzip_header(
    version: int, verify: str, gateway: Gateway, faulty: FaultRegistry, small_tar: bytes
) -> None:
    # A layer of its own for each case: what one case has proven, the next would find.
    name = f"v{version}-{verify}"
    level = {"v1-before": 2, "v1-background": 3, "v2-before": 4, "v2-background": 5}[name]
    blob = member(small_tar, level=level, extra=EXTRA_OF_18_BYTES)
    layer = faulty.add_image(f"team/{name}", [blob]).layers[0]
    built = build(blob, SPAN)
    table = encode(zip(built.points, built.windows, strict=True), SPAN, version=version)
    spec = body(faulty, gateway.upload(table), verify, repository=f"team/{name}")
    edges = [point.out_offset for point in built.points]
    wanted = [*around(edges, len(small_tar)), *random_ranges(version, 200, len(small_tar))]

    def check() -> None:
        with gateway.reader(name) as reader:
            assert reader.differences(small_tar, wanted) == []

    if verify == "background":
        with Held(faulty, layer.digest) as held:
            device = gateway.register(name, spec)
            assert (device["state"], device["verification"]) == ("ready", "verifying"), device
            check()
            assert gateway.show(name)["verification"] == "verifying"
            assert held.begun
    device = gateway.register(name, spec, verified=True)
    assert (device["state"], device["verification"]) == ("ready", "verified"), device
    check()
    assert len(wanted) > 300


@pytest.mark.parametrize("verify", ["before", "background"])
def test_a_table_of_another_layer_is_refused(
    verify: str, gateway: Gateway, faulty: FaultRegistry, table: bytes, small_tar: bytes
) -> None:
    other = small_tar[::-1]
    faulty.add_image(f"team/other-{verify}", [member(other, level=1)])
    zinfo = gateway.upload(table)
    name = f"another-{verify}"
    device = gateway.register(
        name, body(faulty, zinfo, verify, repository=f"team/other-{verify}"), verified=True
    )
    assert device["state"] in ({"failed"} if verify == "before" else {"failed", "quarantined"})
    assert device["error"]["code"] in ("invalid_zinfo", "corrupt_stream"), device["error"]
    answer = gateway.get(name, 0, 512)
    assert (answer.status_code, answer.json()["code"]) in (
        (409, "device_failed"),
        (409, "device_quarantined"),
    )


def poisoned(table: bytes, checkpoint: int, position: int) -> bytes:
    """The table with one byte of one window changed, never to the zero that a sparse window may hold."""
    at = HEADER_BYTES + checkpoint * RECORD_BYTES + RECORD_BYTES - WINDOW_BYTES + position
    value = table[at] ^ 0x55
    return table[:at] + bytes([value or 0x57]) + table[at + 1 :]


def sampled(table: bytes, seed: int, per_window: int) -> list[tuple[int, int]]:
    """Positions in every window but the first, which means nothing: both ends and some between."""
    chance = random.Random(seed)
    count = int.from_bytes(table[:4], "little")
    between = [chance.randrange(WINDOW_BYTES) for _ in range(per_window)]
    return [
        (checkpoint, place)
        for checkpoint in range(1, count)
        for place in {0, WINDOW_BYTES - 1, *between[: per_window * checkpoint % (per_window + 1)]}
    ]


def test_a_flipped_byte_anywhere_in_a_window_fails_a_registration_that_verifies_before(
    gateway: Gateway, faulty: FaultRegistry, layer: StoredBlob, table: bytes, figure: Figure
) -> None:
    places = sampled(table, 1, 2)[::2]
    for number, place in enumerate(places):
        zinfo = gateway.upload(poisoned(table, *place))
        gateway.put(f"poison-{number}", body(faulty, zinfo, "before"))
    for number, (checkpoint, _) in enumerate(places):
        device = gateway.settled(f"poison-{number}")
        assert device["state"] == "failed", device
        assert device["error"]["code"] == "invalid_zinfo"
        assert f"checkpoint {checkpoint}" in device["error"]["detail"]
        assert gateway.get(f"poison-{number}", 0, 512).status_code == 409
    assert len(places) >= 15
    figure("poisoned windows refused before serving", len(places))


def test_a_flipped_byte_in_a_window_is_quarantined_in_the_background_and_served_to_nobody(
    gateway: Gateway, faulty: FaultRegistry, layer: StoredBlob, table: bytes, small_tar: bytes, figure: Figure
) -> None:
    places = sampled(table, 2, 2)[::4]
    right = refused = 0
    starts = [*edges(table), len(small_tar)]
    with Held(faulty, layer.digest) as held:
        for number, place in enumerate(places):
            zinfo = gateway.upload(poisoned(table, *place))
            device = gateway.register(f"behind-{number}", body(faulty, zinfo, "background"))
            assert device["state"] == "ready", device
            for at in (place[0], place[0] - 1):
                start, stop = starts[at], min(starts[at] + 70_000, starts[at + 1])
                answer = gateway.get(f"behind-{number}", start, stop)
                if answer.status_code == 206:
                    assert answer.content == small_tar[start:stop]
                    right += 1
                else:
                    assert (answer.status_code, answer.json()["code"]) == (502, "chain_mismatch"), answer.text
                    refused += 1
        assert held.begun
    for number in range(len(places)):
        device = gateway.settled(f"behind-{number}", verified=True)
        assert device["state"] == "quarantined", device
        assert device["error"]["code"] == "invalid_zinfo"
        answer = gateway.get(f"behind-{number}", 0, 512)
        assert (answer.status_code, answer.json()["code"]) == (409, "device_quarantined")
    assert len(places) >= 8
    assert refused >= len(places)
    figure("poisoned windows quarantined", len(places))
    figure("reads before quarantine: refused / right / wrong", f"{refused} / {right} / 0")
