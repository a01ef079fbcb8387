"""Other people's programs read a device: downloaders, block device servers, a caching proxy."""

import hashlib
import json
import socket
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Figure, random_ranges
from tests.support.faultregistry import FaultRegistry, StoredBlob, digest_of
from tests.support.gateway import Gateway
from tests.support.processes import Process, free_port, port_answers, require_program

_MIB = 1 << 20
_MEDIUM_BYTES = 16 * _MIB
_BIG = {"big-0": 128 * _MIB, "big-1": 80 * _MIB, "big-2": 80 * _MIB}


def pattern(size: int, seed: bytes) -> bytes:
    """Bytes of which no two blocks of 4 KiB are the same, and which compress well."""
    body = hashlib.shake_128(seed).digest(4088)
    return b"".join(number.to_bytes(8, "big") + body for number in range(size // 4096))


def gzipped(content: bytes) -> bytes:
    deflate = zlib.compressobj(1, wbits=31)
    return deflate.compress(content) + deflate.flush()


@pytest.fixture(scope="module")
def medium() -> bytes:
    return pattern(_MEDIUM_BYTES, b"medium")


@pytest.fixture(scope="module")
def big_layers(faulty: FaultRegistry, medium: bytes) -> dict[str, StoredBlob]:
    """Three big layers that differ, and a medium one."""
    layers = {}
    for name, size in _BIG.items():
        content = pattern(size, name.encode())
        image = faulty.add_image(f"team/{name}", [gzipped(content)], diff_ids=[digest_of(content)])
        layers[name] = image.layers[0]
    layers["medium"] = faulty.add_image("team/medium", [gzipped(medium)]).layers[0]
    return layers


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, faulty: FaultRegistry, big_layers: dict[str, StoredBlob]
) -> Iterator[Gateway]:
    settings = {"memory_cache": 8 * _MIB, "disk_cache": 64 * _MIB}
    with Gateway(tmp_path_factory.mktemp("gateway"), settings=settings) as gateway:
        for name in big_layers:
            source = {"image": f"{faulty.host}/team/{name}:latest", "insecure": True}
            device = gateway.register(name, {"source": source, "layout": "tar", "layer": {"index": 0}})
            assert device["state"] == "ready", device["error"]
        yield gateway


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = command
    done = subprocess.run(
        [require_program(str(program)), *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.mark.real
def test_curl_reads_a_range_and_goes_on_with_an_unfinished_download(
    gateway: Gateway, medium: bytes, tmp_path: Path
) -> None:
    url = gateway.data_url("medium")
    run("curl", "-fsS", "-r", "1000000-2999999", "-o", "part", url, cwd=tmp_path)
    assert (tmp_path / "part").read_bytes() == medium[1_000_000:3_000_000]
    (tmp_path / "whole").write_bytes(medium[:10_000_001])
    run("curl", "-fsS", "-C", "-", "-o", "whole", url, cwd=tmp_path)
    assert (tmp_path / "whole").read_bytes() == medium


@pytest.mark.real
def test_curl_gets_a_suffix_and_is_refused_what_lies_behind_the_end(
    gateway: Gateway, medium: bytes, tmp_path: Path
) -> None:
    url = gateway.data_url("medium")
    run("curl", "-fsS", "-r", "-4096", "-o", "end", url, cwd=tmp_path)
    assert (tmp_path / "end").read_bytes() == medium[-4096:]
    behind = ["-sS", "-o", "behind", "-w", "%{http_code} %header{content-range}", "-r", f"{len(medium)}-"]
    told = run("curl", *behind, url, cwd=tmp_path).stdout
    assert told.split(maxsplit=1) == ["416", f"bytes */{len(medium)}"] or told.startswith("416")
    assert json.loads((tmp_path / "behind").read_text())["code"] == "range_not_satisfiable"


@pytest.mark.real
def test_wget_goes_on_with_an_unfinished_download(gateway: Gateway, medium: bytes, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(medium[:7_654_321])
    run("wget", "--no-verbose", "--no-proxy", "-c", gateway.data_url("medium"), cwd=tmp_path)
    assert (tmp_path / "data").read_bytes() == medium


@pytest.mark.real
def test_aria2_downloads_over_sixteen_connections(gateway: Gateway, medium: bytes, tmp_path: Path) -> None:
    program = require_program("aria2c", package="aria2")
    options = ["-x16", "-s16", "-k1M", "--no-conf=true", "--file-allocation=none", "--console-log-level=warn"]
    run(program, *options, "-o", "whole", gateway.data_url("medium"), cwd=tmp_path)
    assert (tmp_path / "whole").read_bytes() == medium


@pytest.mark.real
def test_nbdkit_serves_it_as_a_block_device(gateway: Gateway, medium: bytes, tmp_path: Path) -> None:
    nbdcopy = require_program("nbdcopy", package="libnbd-bin")
    nbdkit = require_program("nbdkit")
    run(nbdcopy, "[", nbdkit, "curl", gateway.data_url("medium"), "]", "whole", cwd=tmp_path)
    assert (tmp_path / "whole").read_bytes() == medium


@pytest.mark.real
def test_qemu_reads_it_as_a_disk(gateway: Gateway, medium: bytes, tmp_path: Path) -> None:
    program = require_program("qemu-img", package="qemu-utils")
    if not any(Path("/usr/lib").glob("*/qemu/block-curl.so")):
        pytest.skip("qemu's curl driver is missing: install the Debian package qemu-block-extra")
    run(program, "convert", "-f", "raw", "-O", "raw", gateway.data_url("medium"), "whole", cwd=tmp_path)
    assert (tmp_path / "whole").read_bytes() == medium


_NGINX = """\
daemon off;
worker_processes 1;
user root;
pid {state}/pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {state}/body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    proxy_cache_path {state}/cache keys_zone=slices:1m max_size=1g;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            slice 1m;
            proxy_cache slices;
            proxy_cache_key $uri$is_args$args$slice_range;
            proxy_cache_valid 200 206 1h;
            proxy_set_header Range $slice_range;
            proxy_http_version 1.1;
            add_header X-Cache $upstream_cache_status;
            proxy_pass {upstream};
        }}
    }}
}}
"""


@pytest.mark.real
def test_nginx_keeps_it_in_slices(gateway: Gateway, medium: bytes, tmp_path: Path) -> None:
    program = require_program("nginx", package="nginx-light")
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(_NGINX.format(state=tmp_path, port=port, upstream=gateway.url))
    argv = [program, "-c", configuration, "-e", "stderr"]
    with (
        Process(argv, log=tmp_path / "log", ready=port_answers(port)),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        # The address of the content: what is found by a name has to be asked for anew each time.
        path = httpx.URL(gateway.show("medium")["data_url"]).path
        for start, stop in random_ranges(9, 60, len(medium), 3 * _MIB):
            answer = client.get(path, headers={"Range": f"bytes={start}-{stop - 1}"})
            assert answer.status_code == 206
            assert answer.content == medium[start:stop]
        assert client.get(path).content == medium
        again = client.get(path, headers={"Range": "bytes=5-9"})
        assert (again.content, again.headers["x-cache"]) == (medium[5:10], "HIT")
        assert client.head(path).headers["content-length"] == str(len(medium))


# --- what a client does must not cost the gateway its memory


def open_get(gateway: Gateway, name: str) -> socket.socket:
    """A client that has asked for a whole device and read the first bytes of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.settimeout(60)
    client.connect(("127.0.0.1", gateway.port))
    client.sendall(f"GET /v1/devices/{name}/data HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert client.recv(12) == b"HTTP/1.1 200"
    return client


def streamed(gateway: Gateway, name: str) -> str:
    digest = hashlib.sha256()
    with gateway.http.stream("GET", f"/v1/devices/{name}/data") as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            digest.update(piece)
    return digest.hexdigest()


def fetched_bytes(faulty: FaultRegistry, layer: StoredBlob) -> float:
    """How much of the device was fetched, guessed from how much of the blob was."""
    ranges = [request.range or "" for request in faulty.matching(layer.digest, ranges_only=True)]
    spans = [tuple(map(int, text.removeprefix("bytes=").split("-"))) for text in ranges]
    return sum(stop + 1 - start for start, stop in spans) / layer.size * _BIG["big-1"]


def test_a_whole_big_device_a_stopped_client_and_a_gone_one_cost_little_memory_and_no_needless_fetch(
    gateway: Gateway, faulty: FaultRegistry, big_layers: dict[str, StoredBlob], figure: Figure
) -> None:
    stopped = open_get(gateway, "big-1")
    gone = open_get(gateway, "big-2")
    gone.close()
    # A whole download of another device goes by meanwhile: time enough for needless fetches to show.
    before = gateway.rss_bytes()
    gateway.reset_peak()
    assert streamed(gateway, "big-0") == hashlib.sha256(pattern(_BIG["big-0"], b"big-0")).hexdigest()
    growth = gateway.peak_bytes() - before
    assert growth < 96 * _MIB
    waiting = fetched_bytes(faulty, big_layers["big-1"])
    assert 0 < waiting < 48 * _MIB
    left = fetched_bytes(faulty, big_layers["big-2"])
    assert left < 48 * _MIB
    # The stopped client goes on, and gets all of it.
    received = 0
    while piece := stopped.recv(1 << 20):
        received += len(piece)
        if received >= 20 * _MIB:
            break
    stopped.close()
    assert fetched_bytes(faulty, big_layers["big-1"]) >= 20 * _MIB
    figure("128 MiB streamed: resident memory grew by, MiB", round(growth / _MIB, 1))
    figure("client that does not read: fetched for it of 80 MiB, MiB", round(waiting / _MIB, 1))
    figure("client that went away: fetched for it of 80 MiB, MiB", round(left / _MIB, 1))


def test_a_repeated_etag_answers_not_modified_and_a_stale_one_is_refused(gateway: Gateway) -> None:
    url = "/v1/devices/medium/data"
    etag = gateway.http.head(url).headers["etag"]
    assert gateway.show("medium")["etag"] == etag
    assert gateway.http.get(url, headers={"If-None-Match": etag, "Range": "bytes=0-9"}).status_code == 304
    assert gateway.http.get(url, headers={"If-Match": '"other"', "Range": "bytes=0-9"}).status_code == 412
    resumed = gateway.http.get(url, headers={"If-Range": etag, "Range": "bytes=0-9"})
    assert (resumed.status_code, len(resumed.content)) == (206, 10)


def test_several_ranges_come_as_parts(gateway: Gateway, medium: bytes) -> None:
    answer = gateway.http.get("/v1/devices/medium/data", headers={"Range": "bytes=0-9,2000000-2000004,-3"})
    assert answer.status_code == 206
    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    assert "content-range" not in answer.headers
    parts = [part.partition(b"\r\n\r\n") for part in answer.content.split(f"--{boundary}".encode())[1:-1]]
    assert [body.removesuffix(b"\r\n") for _, _, body in parts] == [
        medium[:10],
        medium[2_000_000:2_000_005],
        medium[-3:],
    ]
    labels = [head.split(b"Content-Range: ")[1].split(b"\r\n")[0] for head, _, _ in parts]
    assert labels[1] == b"bytes 2000000-2000004/%d" % len(medium)
