"""kill -9 and SIGTERM at bad moments: the next start finds everything, goes on, and serves right bytes."""

import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.conftest import Figure
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.gzips import member
from tests.support.processes import wait_until
from tests.support.threadedregistry import Held

_LEVELS = {"asked": 2, "downloading": 3, "finishing": 4, "terminated": 5}


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, faulty: FaultRegistry, small_tar: bytes
) -> Iterator[Gateway]:
    for name, level in _LEVELS.items():
        faulty.add_image(f"team/{name}", [member(small_tar, level=level)])
    settings = {"span_size": "262144", "memory_cache": 0}
    with Gateway(tmp_path_factory.mktemp("gateway"), settings=settings) as gateway:
        yield gateway


def body(faulty: FaultRegistry, name: str, layout: str = "tar") -> dict:
    source = {"image": f"{faulty.host}/team/{name}:latest", "insecure": True}
    return {"source": source, "layout": layout, "layer": {"index": 0}}


def leftovers(gateway: Gateway) -> list[str]:
    """Files that only a running write or a running registration may have."""
    locks = [path.name for path in (gateway.data_dir / "locks").glob("*.registration")]
    return [str(path) for path in gateway.temporary_files()] + locks


@pytest.mark.parametrize("moment", ["asked", "downloading", "finishing"])
def test_a_crash_during_a_registration_delays_it_and_nothing_else(
    moment: str, gateway: Gateway, faulty: FaultRegistry, small_tar: bytes, figure: Figure
) -> None:
    digest = faulty.add_image(f"team/{moment}", [member(small_tar, level=_LEVELS[moment])]).layers[0].digest
    before = {device["name"] for device in gateway.http.get("/v1/devices").json()["devices"]}
    for layout in ("tar", "filesystem"):
        assert gateway.put(f"{moment}-{layout}", body(faulty, moment, layout)).status_code == 202
    if moment == "downloading":
        with Held(faulty, digest):
            wait_until(lambda: bool(gateway.temporary_files()), what="a pass")
            gateway.kill()
            assert gateway.temporary_files()
    elif moment == "finishing":
        folder = gateway.data_dir / "layers" / digest.removeprefix("sha256:")
        wait_until(folder.is_dir, what="a pass")
        gateway.kill()
    else:
        gateway.kill()
    gateway.start()
    names = {device["name"] for device in gateway.http.get("/v1/devices").json()["devices"]}
    assert names == before | {f"{moment}-tar", f"{moment}-filesystem"}
    for name in sorted(names):
        device = gateway.settled(name)
        assert device["state"] == "ready", device
        assert device["verification"] == "verified"
        layer = next(segment for segment in device["segments"] if segment["kind"] == "gzip")
        answer = gateway.get(name, layer["offset"], layer["offset"] + layer["length"])
        assert answer.content == small_tar
    wait_until(lambda: leftovers(gateway) == [], what="no leftover")
    figure(f"kill -9 of a registration, {moment}: devices found again", f"{len(names)} of {len(names)}")


def test_a_crash_during_cache_writes_leaves_no_file_that_is_not_whole(
    gateway: Gateway, small_tar: bytes, figure: Figure
) -> None:
    crashes = 0
    for spans_first in (1, 5):
        gateway.drop_caches()
        problems: list[BaseException] = []

        def read(problems: list[BaseException] = problems) -> None:
            try:
                httpx.get(gateway.data_url("asked-tar"), timeout=30)
            except httpx.HTTPError as error:
                problems.append(error)

        reading = threading.Thread(target=read)
        reading.start()
        wait_until(lambda least=spans_first: len(gateway.span_files()) >= least, what="cached spans")
        gateway.kill()
        reading.join()
        crashes += 1
        gateway.start()
        assert gateway.temporary_files() == []
        with gateway.reader("asked-tar") as reader:
            assert reader.differences(small_tar, [(0, len(small_tar))]) == []
    figure("kill -9 during cache writes: wrong bytes afterwards", f"0 in {crashes} crashes")


def test_sigterm_in_the_middle_of_a_registration_ends_cleanly_and_the_next_start_goes_on(
    gateway: Gateway, faulty: FaultRegistry, small_tar: bytes
) -> None:
    digest = faulty.add_image("team/terminated", [member(small_tar, level=5)]).layers[0].digest
    with Held(faulty, digest):
        gateway.put("terminated", body(faulty, "terminated"))
        wait_until(lambda: bool(gateway.temporary_files()), what="a pass")
        assert gateway.stop() == 0
    assert gateway.temporary_files() == []
    assert "Traceback" not in gateway.running.output
    gateway.start()
    assert gateway.settled("terminated")["state"] == "ready"
    assert gateway.get("terminated", 0, len(small_tar)).content == small_tar


def test_sigterm_drains_before_it_ends(gateway: Gateway, small_tar: bytes) -> None:
    """Not ready at once; new requests are answered for a while; a transfer that has begun is finished."""
    gateway.settings["drain_seconds"] = 5
    gateway.restart()
    with (
        httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as other,
        gateway.http.stream("GET", "/v1/devices/asked-tar/data") as answer,
    ):
        pieces = answer.iter_raw(65536)
        received = next(pieces)
        gateway.signal(signal.SIGTERM)
        wait_until(lambda: other.get("/readyz").status_code == 503, what="draining")
        assert other.get("/readyz").json()["status"] == "draining"
        assert other.get("/livez").status_code == 200
        # On a connection of its own: the listener is still there.
        with gateway.reader("asked-tar") as reader:
            assert reader.read(5000, 6000) == small_tar[5000:6000]
        late = other.get("/v1/devices/asked-tar/data", headers={"Range": "bytes=5000-5999"})
        assert late.content == small_tar[5000:6000]
        received += b"".join(pieces)
    assert received == small_tar
    assert gateway.stop() == 0
