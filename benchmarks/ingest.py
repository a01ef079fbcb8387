"""One registration pass: its speed against ``gzip -dc``, and its memory, also for a layer of many GB (target 6)."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.layers import Layer
from benchmarks.report import Row
from benchmarks.servers import Registry, cpu_seconds, gateway, image

NOTES = (
    (
        "target 6: gzip -dc reads a local file and checks CRC-32 only; the pass downloads from nginx, hashes both sides, "
        "cuts checkpoints and walks the tar on two threads, so it uses both processors; its time has the registration's "
        "calls and polling every 50 ms"
    ),
    (
        "target 6: the layer of many GB repeats 16 MiB of the real one behind full flushes and is served by this process "
        "without being stored; peak memory is that of the whole gateway, Python and libraries included"
    ),
)

_CHUNK_BYTES = 16 << 20


def registration(registry: Registry, layer: Layer, folder: Path, *, rounds: int) -> list[Row]:
    ours, cpu, theirs, peaks = [], [], [], []
    for number in range(rounds):
        with gateway(folder / f"ingest{number}") as fresh:
            before = cpu_seconds(fresh.pid)
            ours.append(fresh.register("layer", registry.image))
            cpu.append(cpu_seconds(fresh.pid) - before)
            peaks.append(fresh.peak_bytes())
        started = time.monotonic()
        subprocess.run(["gzip", "-dc", layer.blob], stdout=subprocess.DEVNULL, check=True)
        theirs.append(time.monotonic() - started)
    detail = f"pass {median(ours):.2f} s ({median(cpu):.2f} s CPU), gzip {median(theirs):.2f} s"
    return [
        Row(6, "registration vs gzip -dc", median(theirs) / median(ours), "≥1", "x", detail),
        Row(6, f"peak memory, {layer.tar_size / 1e6:.0f} MB layer", max(peaks) / 1e6, "≤200", "MB"),
    ]


def huge_registration(layer: Layer, folder: Path, *, size: int) -> list[Row]:
    """The same for a layer of ``size`` decoded bytes that is stored nowhere."""
    with layer.tar.open("rb") as file:
        chunk = file.read(_CHUNK_BYTES)
    huge = HugeLayer(chunk, max(1, size // len(chunk)))
    with _serving(huge) as name, gateway(folder / "huge") as fresh:
        seconds = fresh.register("huge", name)
        peak = fresh.peak_bytes()
    detail = f"{huge.size / 1e9:.1f} GB compressed in {seconds:.0f} s"
    return [Row(6, f"peak memory, {huge.decoded_size / 1e9:.1f} GB layer", peak / 1e6, "≤200", "MB", detail)]


class HugeLayer:
    """A tar of one large file as one gzip member, made of repeated pieces.

    They can be repeated because deflate after a full flush does not refer to what came before.
    """

    def __init__(self, chunk: bytes, repeats: int) -> None:
        compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
        head = _tar_header(len(chunk) * repeats)
        first = compressor.compress(head) + compressor.flush(zlib.Z_FULL_FLUSH)
        again = compressor.compress(chunk) + compressor.flush(zlib.Z_FULL_FLUSH)
        last = compressor.compress(bytes(1024)) + compressor.flush()
        decoded, crc = hashlib.sha256(), 0
        for piece in (head, *[chunk] * repeats, bytes(1024)):
            decoded.update(piece)
            crc = zlib.crc32(piece, crc)
        self.decoded_size = len(head) + len(chunk) * repeats + 1024
        trailer = crc.to_bytes(4, "little") + (self.decoded_size % (1 << 32)).to_bytes(4, "little")
        self._pieces = [
            b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + first,
            *[again] * repeats,
            last + trailer,
        ]
        self.size = sum(map(len, self._pieces))
        blob = hashlib.sha256()
        for piece in self._pieces:
            blob.update(piece)
        self.digest, self.diff_id = f"sha256:{blob.hexdigest()}", f"sha256:{decoded.hexdigest()}"

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """The blob's bytes ``[start, stop)``."""
        position = 0
        for piece in self._pieces:
            low, high = max(start - position, 0), min(stop - position, len(piece))
            if low < high:
                yield memoryview(piece)[low:high]
            position += len(piece)


def _tar_header(size: int) -> bytes:
    """A ustar header of one regular file; sizes above 8 GiB are not written by this."""
    header = bytearray(512)
    for offset, text in (
        (0, b"huge"),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"%011o\0" % size),
        (136, b"00000000000\0"),
        (148, b" " * 8),
        (156, b"0"),
        (257, b"ustar\x0000"),
    ):
        header[offset : offset + len(text)] = text
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@contextmanager
def _serving(huge: HugeLayer) -> Iterator[str]:
    """A registry of that layer; yields the image's reference."""
    manifest, config = image([(huge.digest, huge.diff_id, huge.size)])
    documents = {"/manifests/latest": manifest[1], f"/blobs/{config[0]}": config[1]}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.removeprefix("/v2/bench/huge")
            if path in documents:
                self._head(200, len(documents[path]))
                self.wfile.write(documents[path])
            elif path == f"/blobs/{huge.digest}":
                self._blob()
            else:
                self._head(404, 0)

        def _blob(self) -> None:
            asked = self.headers.get("range")
            start, stop = 0, huge.size
            if asked is None:
                self._head(200, huge.size)
            else:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), int(last) + 1
                self._head(206, stop - start, f"bytes {start}-{stop - 1}/{huge.size}")
            for piece in huge.pieces(start, stop):
                self.wfile.write(piece)

        def _head(self, status: int, length: int, content_range: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            if content_range is not None:
                self.send_header("Content-Range", content_range)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}/bench/huge:latest"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
