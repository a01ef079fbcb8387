"""What tests of a device's life share: images whose bytes are known, reads that wait for health, damage on purpose.

These helpers speak HTTP to a gateway and look at files only to damage them. They use nothing from inside the gateway,
so they hold for every structure that it may have. A read is judged strictly: right bytes under the right entity tag, or a problem that says when
to ask again. Everything else fails at once, and wrong bytes fail whatever the status is.
"""

import asyncio
import dataclasses
import io
import json
import random
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, SupportsIndex

import httpx

from tests.support import gzips
from tests.support.erofsreader import read_tree
from tests.support.faultregistry import (
    CONFIG_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
    FaultRegistry,
    Reply,
    Request,
    digest_of,
)
from tests.support.gateway import Document, Gateway

SPAN_BYTES = 65536
#: Small spans, so that small layers have several, and a registry that is given up soon.
SETTINGS: dict[str, object] = {
    "span_size": SPAN_BYTES,
    "registry_attempt_seconds": 2,
    "registry_deadline_seconds": 4,
    "allow_addresses": ["127.0.0.0/8"],
}
#: Answers to a read that cannot be had now: of the gateway itself, and of a registry behind it.
LOCAL_TROUBLE = frozenset({503})
REGISTRY_TROUBLE = frozenset({502, 503, 504})

_POLL_SECONDS = 0.02
_WHOLE_BLOB = re.compile(r"bytes=\d+-")


# --- content


def content(length: int, seed: int) -> bytes:
    """Compressible bytes, the same for the same seed."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randint(3, 12)) for _ in range(300)]
    out = bytearray()
    while len(out) < length:
        out += chance.choice(words) if chance.random() < 0.9 else chance.randbytes(chance.randint(1, 40))
    return bytes(out[:length])


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_700_000_000
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class Image:
    """An image in a registry; ``files`` is what its file system holds."""

    host: str
    repository: str
    digest: str
    blobs: tuple[str, ...]
    tars: tuple[bytes, ...]
    files: dict[str, bytes]

    def spec(self, **fields: Any) -> Document:
        """A registration by the tag ``latest``."""
        image = f"{self.host}/{self.repository}:latest"
        return {"source": {"image": image, "insecure": True}, **fields}

    def layer_spec(self, index: int = 0, **fields: Any) -> Document:
        """A registration of one layer's tar."""
        return self.spec(layout="tar", layer={"index": index}, **fields)


def put_image(
    registry: FaultRegistry,
    repository: str,
    layers: Sequence[Mapping[str, bytes] | bytes],
    *,
    config: Mapping[str, Any] | None = None,
) -> Image:
    """Push an image of these layers (files, or a whole tar) under the tag ``latest``."""
    files: dict[str, bytes] = {}
    tars = []
    for layer in layers:
        tars.append(layer if isinstance(layer, bytes) else tar_of(layer))
        files |= {} if isinstance(layer, bytes) else layer
    blobs = [registry.add_blob(gzips.member(tar)) for tar in tars]
    document = {
        "os": "linux",
        "architecture": "amd64",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
    }
    stored = registry.add_blob(json.dumps(document).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": stored.digest, "size": stored.size},
        "layers": [{"mediaType": LAYER_TYPE, "digest": blob.digest, "size": blob.size} for blob in blobs],
    }
    digest = registry.add_manifest(repository, manifest, MANIFEST_TYPE, "latest")
    return Image(registry.host, repository, digest, tuple(blob.digest for blob in blobs), tuple(tars), files)


def small_image(registry: FaultRegistry, repository: str, seed: int = 1, *, size: int = 300_000) -> Image:
    """Two layers of several spans each."""
    base = {
        "etc/motd": b"hello\n",
        "usr/one": content(size, 3 * seed),
        "usr/two": content(size // 2, 3 * seed + 1),
    }
    upper = {"etc/motd": f"of {repository}\n".encode(), "srv/data": content(size // 2, 3 * seed + 2)}
    return put_image(registry, repository, [base, upper])


# --- what a device must be


@dataclass(frozen=True)
class Seen:
    """A ready device as it was read once and found right: it has to stay so."""

    name: str
    etag: str
    content: bytes
    device: Document

    def layer(self, image: Image, number: int) -> tuple[int, int]:
        """Where a layer's tar lies in the device."""
        segment = next(s for s in self.device["segments"] if s["digest"] == image.blobs[number])
        return segment["offset"], segment["offset"] + len(image.tars[number])


def registered(gateway: Gateway, name: str, image: Image, **fields: Any) -> Seen:
    """Register a file system, check each byte of it, and keep it."""
    gateway.register(name, image.spec(**fields))
    return seen(gateway, name, image)


def seen(gateway: Gateway, name: str, image: Image, *, seconds: float = 30) -> Seen:
    """The file system device, whose layers and files are compared with the image."""
    device = gateway.settled(name, seconds=seconds)
    assert device["state"] == "ready", device
    answer = gateway.http.get(f"/v1/devices/{name}/data")
    assert answer.status_code == 200, answer.text[:500]
    assert len(answer.content) == device["size"]
    found = Seen(name, answer.headers["etag"], answer.content, device)
    for number, tar in enumerate(image.tars):
        start, stop = found.layer(image, number)
        assert answer.content[start:stop] == tar, f"layer {number} of {name} has wrong bytes"
    check_files(answer.content, image.files)
    return found


def check_files(device: bytes, files: Mapping[str, bytes]) -> None:
    """The device is a file system, and holds these files."""
    tree = read_tree(lambda offset, length: device[offset : offset + length])
    paths = {path.decode().strip("/"): node for path, node in tree.items()}
    for path, data in files.items():
        assert path in paths, f"{path} is not among {sorted(paths)}"
        assert paths[path].content() == data, f"{path} has wrong bytes"


def attempt(
    gateway: Gateway,
    name: str,
    expected: bytes,
    etag: str | None,
    *,
    span: tuple[int, int] | None = None,
    trouble: Collection[int] = LOCAL_TROUBLE,
) -> bool:
    """One read: True for right bytes, False for an answer that asks to come again; fails for every other.

    An answer that ends short of what it announced is a failed read, not a wrong one.
    """
    start, stop = span or (0, len(expected))
    headers = {"Range": f"bytes={start}-{stop - 1}"} if span else {}
    try:
        answer = gateway.http.get(f"/v1/devices/{name}/data", headers=headers)
    except httpx.RemoteProtocolError:
        return False
    if answer.is_success:
        assert answer.content == expected[start:stop], f"WRONG BYTES of {name} in {start}-{stop}"
        assert etag is None or answer.headers["etag"] == etag, "the entity tag has changed"
        return True
    problem = f"{answer.status_code} {answer.text[:500]}"
    assert answer.status_code in trouble, problem
    assert answer.json()["retryable"], problem
    if answer.status_code == 503:
        assert "retry-after" in answer.headers, problem
    return False


def heals(
    gateway: Gateway,
    kept: Seen,
    *,
    span: tuple[int, int] | None = None,
    seconds: float = 25,
    trouble: Collection[int] = LOCAL_TROUBLE,
) -> None:
    """The device, which says ``ready`` all the while, gives its bytes again without anybody's help."""
    deadline = time.monotonic() + seconds
    while not attempt(gateway, kept.name, kept.content, kept.etag, span=span, trouble=trouble):
        stays_ready(gateway, kept)
        assert time.monotonic() < deadline, f"{kept.name} does not heal: {gateway.show(kept.name)}"
        time.sleep(_POLL_SECONDS)
    stays_ready(gateway, kept)


def stays_ready(gateway: Gateway, kept: Seen) -> Document:
    """The device is what it was, whatever its health."""
    device = gateway.show(kept.name)
    assert device["state"] == "ready", (
        f"a passing fault made {kept.name} {device['state']}: {device['error']}"
    )
    assert device["etag"] == kept.etag
    return device


def waiting(gateway: Gateway, name: str, *, seconds: float = 20) -> Document:
    """The progress of a registration that waits for a fault to pass."""
    deadline = time.monotonic() + seconds
    while True:
        device = gateway.show(name)
        assert device["state"] == "indexing", (
            f"a passing fault made {name} {device['state']}: {device['error']}"
        )
        progress = device["progress"] or {}
        if progress.get("phase") == "waiting":
            return dict(progress)
        assert time.monotonic() < deadline, f"{name} never says that it waits: {device}"
        time.sleep(_POLL_SECONDS)


# --- the data folder, to damage it


def index_folder(gateway: Gateway, blob: str) -> Path:
    """The folder of a layer's one finished index."""
    found = [
        path.parent
        for path in (gateway.data_dir / "layers" / blob.removeprefix("sha256:")).rglob("index.json")
    ]
    folders = [path for path in found if ".tmp" not in str(path) and "provisional" not in path.name]
    assert len(folders) == 1, folders
    return folders[0]


def artifact(gateway: Gateway, digest: str) -> Path:
    """The file of an artifact."""
    found = list((gateway.data_dir / "artifacts").rglob(digest.removeprefix("sha256:")))
    assert len(found) == 1, found
    return found[0]


def metadata_digest(device: Mapping[str, Any]) -> str:
    """Digest of the metadata of a file system device."""
    return str(next(s["digest"] for s in device["segments"] if s["kind"] == "metadata"))


def flip(path: Path, position: int | None = None) -> None:
    """Flip one bit, in place, as a disk does."""
    with path.open("r+b") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(size // 2 if position is None else position)
        byte = file.read(1)
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def overwrite(path: Path, start: int, data: bytes) -> None:
    """Write over bytes of a file, in place."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def cut_short(path: Path) -> None:
    """Let the file end at half its length."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


# --- faults


def to_manifests(request: Request) -> bool:
    """Requests for a manifest."""
    return "/manifests/" in request.path


class Trickle:
    """Passes over these blobs arrive so slowly that they never end while this lasts; ranges come at once.

    With ``ranges`` they are slow too, as the rest of a pass may be asked for by one.

    ``sent_bytes`` counts what was sent, ``running`` the transfers whose connection is still open.
    """

    def __init__(self, registry: FaultRegistry, blobs: Iterable[str], *, ranges: bool = False) -> None:
        self._registry = registry
        self._ranges = ranges
        self._blobs = frozenset(blobs)
        self._transfers: list[tuple[Reply, asyncio.Task[Any] | None]] = []
        self.sent_bytes = 0

    @property
    def running(self) -> int:
        return sum(task is not None and not task.done() for _, task in list(self._transfers))

    @property
    def begun(self) -> int:
        return len(self._transfers)

    def __enter__(self) -> Self:
        self._registry.inject(self._slow, times=None, matching=self._matches)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._registry.heal()
        for reply, _ in self._transfers:
            reply.piece_seconds = 0.0

    def _matches(self, request: Request) -> bool:
        whole = self._ranges or request.range is None or _WHOLE_BLOB.fullmatch(request.range) is not None
        return whole and request.method == "GET" and any(blob in request.path for blob in self._blobs)

    def _slow(self, request: Request, reply: Reply) -> None:
        reply.piece_bytes, reply.piece_seconds = 1024, 0.2
        reply.body = _Counted(reply.body, self._count)
        self._transfers.append((reply, asyncio.current_task()))

    def _count(self, length: int) -> None:
        self.sent_bytes += length


class _Counted(bytes):
    """Bytes that tell how many of them were taken out piece by piece."""

    _taken: Callable[[int], None]

    def __new__(cls, data: bytes, taken: Callable[[int], None]) -> Self:
        made = super().__new__(cls, data)
        made._taken = taken
        return made

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        piece = super().__getitem__(key)
        self._taken(len(piece) if isinstance(piece, bytes) else 1)
        return piece


# --- checkpoint tables


@dataclass(frozen=True)
class Checkpoints:
    """A zinfo version 2 in parts: where each span begins, and the 32 KiB before it."""

    span_size: int
    points: tuple[tuple[int, int, int], ...]
    windows: tuple[bytes, ...]

    @classmethod
    def parse(cls, table: bytes) -> Self:
        count, span_size = int.from_bytes(table[:4], "little"), int.from_bytes(table[4:12], "little")
        records = [table[12 + number * 32785 :][:32785] for number in range(count)]
        points = tuple(
            (int.from_bytes(r[:8], "little"), int.from_bytes(r[8:16], "little"), r[16]) for r in records
        )
        return cls(span_size, points, tuple(record[17:] for record in records))

    def encode(self) -> bytes:
        head = len(self.points).to_bytes(4, "little") + self.span_size.to_bytes(8, "little")
        return head + b"".join(
            start.to_bytes(8, "little") + out.to_bytes(8, "little") + bytes([bits]) + window
            for (start, out, bits), window in zip(self.points, self.windows, strict=True)
        )

    def forged(self, blob: bytes, *, at: int = 1) -> "Checkpoints":
        """The table with another window ``at``, and all behind it recomputed from what inflating then gives.

        Each span behind ``at`` ends as the next window says: only a pass from the beginning of the blob sees it.
        """
        start, out, bits = self.points[at]
        window = bytes(byte ^ 0x20 for byte in self.windows[at])
        # The bits before the checkpoint are shifted away, and so it lies at the beginning of a byte.
        tail = blob[start - 1 :] if bits else blob[start:]
        shift = 8 - bits if bits else 0
        stream = (int.from_bytes(tail, "little") >> shift).to_bytes(len(tail), "little")
        lie = window + zlib.decompressobj(-zlib.MAX_WBITS, window).decompress(stream)
        windows = [lie[o - out :][:32768] for _, o, _ in self.points[at:]]
        return dataclasses.replace(self, windows=(*self.windows[:at], *windows))
