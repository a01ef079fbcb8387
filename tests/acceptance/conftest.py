"""What the acceptance tests share: layers, edges of a device, and figures for the report."""

import io
import itertools
import random
import tarfile
from collections.abc import Callable, Iterator

import pytest

from gateway.layers.index import SPANS
from gateway.layers.table import SpanTable
from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.threadedregistry import ThreadedRegistry

Figure = Callable[[str, object], None]
SMALL_TAR_BYTES = 5_500_000

_WORDS = ["".join(random.Random(n).choices("etaoinshrdlucmfpgwybvk_", k=2 + n % 9)) for n in range(4000)]
_FREQUENCIES = list(itertools.accumulate(1 / (rank + 3) for rank in range(4000)))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Keeps a number for the report: ``scripts/acceptance_report.py`` prints them all."""
    return record_property


def program_text(chance: random.Random, size: int) -> bytes:
    """``size`` bytes that compress to a third, as sources of programs do."""
    lines: list[str] = []
    length = 0
    while length < size:
        words = " ".join(chance.choices(_WORDS, cum_weights=_FREQUENCIES, k=chance.randint(1, 10)))
        lines.append("    " * chance.randint(0, 4) + words + "\n")
        length += len(lines[-1])
    return "".join(lines).encode()[:size]


@pytest.fixture(scope="session")
def small_tar() -> bytes:
    """A tar of 5.5 MB as a layer is: text of all sizes, a link, folders. The same bytes on every machine."""
    chance = random.Random(5)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        number = 0
        while out.tell() <= SMALL_TAR_BYTES:
            content = program_text(chance, min(200_000, int(chance.lognormvariate(9, 1.5))))
            info = tarfile.TarInfo(f"lib/package{number % 7}/file{number}.py")
            info.size, info.mtime, info.mode = len(content), 1_700_000_000, 0o644
            tar.addfile(info, io.BytesIO(content))
            number += 1
        link = tarfile.TarInfo("lib/link")
        link.type, link.linkname, link.mtime = tarfile.SYMTYPE, "package0/file0.py", 1_700_000_000
        tar.addfile(link)
    return out.getvalue()


def span_edges(gateway: Gateway, digest: str) -> list[int]:
    """Where the spans of a layer begin and end, in its decoded bytes."""
    table = SpanTable((gateway.index_folder(digest) / SPANS).read_bytes())
    return [table.bounds(number)[0] for number in range(table.count)] + [table.size]


def random_ranges(seed: int, count: int, size: int, longest: int = 1 << 16) -> Iterator[tuple[int, int]]:
    """Ranges anywhere; most are short, some as long as ``longest``."""
    chance = random.Random(seed)
    for _ in range(count):
        start = chance.randrange(size)
        length = chance.choice([1, 512, 4096, chance.randint(1, longest)])
        yield start, min(size, start + length)


def padded(content: bytes) -> bytes:
    """As it lies in a device behind metadata: up to the next multiple of 4096."""
    return content + bytes(-len(content) % 4096)


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultRegistry]:
    """A registry that misbehaves on demand."""
    with ThreadedRegistry() as registry:
        yield registry
