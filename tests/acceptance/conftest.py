"""What the acceptance tests share: layers, edges of a device, and figures for the report."""

import io
import random
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.spans.index import LayerIndex
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.threadedregistry import ThreadedRegistry

Figure = Callable[[str, object], None]
SMALL_TAR_BYTES = 5 << 20


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Keeps a number for the report: ``scripts/acceptance_report.py`` prints them all."""
    return record_property


@pytest.fixture(scope="session")
def small_tar() -> bytes:
    """A tar of 5 MiB as a layer is: program text of all sizes, links, folders."""
    root = Path(sysconfig.get_path("stdlib"))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(root.rglob("*.py")):
            if out.tell() > SMALL_TAR_BYTES:
                break
            content = path.read_bytes()
            info = tarfile.TarInfo(f"lib/{path.relative_to(root)}")
            info.size, info.mtime, info.mode = len(content), 1_700_000_000, 0o644
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("lib/link")
        link.type, link.linkname, link.mtime = tarfile.SYMTYPE, "os.py", 1_700_000_000
        tar.addfile(link)
    return out.getvalue()


def span_edges(gateway: Gateway, digest: str) -> list[int]:
    """Where the spans of a layer begin and end, in its decoded bytes."""
    index = LayerIndex.open(gateway.index_folder(digest))
    assert index is not None
    try:
        return [index.table.bounds(number)[0] for number in range(index.table.count)] + [index.table.size]
    finally:
        index.close()


def random_ranges(seed: int, count: int, size: int, longest: int = 1 << 16) -> Iterator[tuple[int, int]]:
    """Ranges anywhere; most are short, some as long as ``longest``."""
    chance = random.Random(seed)
    for _ in range(count):
        start = chance.randrange(size)
        length = chance.choice([1, 512, 4096, chance.randint(1, longest)])
        yield start, min(size, start + length)


def padded(content: bytes) -> bytes:
    """As it lies in a device: up to the next block of 512."""
    return content + bytes(-len(content) % 512)


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultRegistry]:
    """A registry that misbehaves on demand."""
    with ThreadedRegistry() as registry:
        yield registry
