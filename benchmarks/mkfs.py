"""How long metadata takes, and how much memory: `python benchmarks/mkfs.py [FILES…] [--tar LAYER.tar …]`.

FILES: numbers of synthetic files (default 10000 100000 1000000), a hundred to a directory, each run in a
process of its own. The table of contents is encoded, decoded, applied and written as in a registration.
Targets: a million files in 60 s and 2 GiB; a Debian root of 170 MB in 2 s.
"""

from __future__ import annotations

import argparse
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gateway.erofs.entry import Entry
from gateway.erofs.tarstream import TarWalker
from gateway.erofs.toc import TocWriter, read_toc
from gateway.erofs.validate import validate
from gateway.erofs.writer import LayerToc, build


def synthetic(files: int) -> bytes:
    encoded = bytearray()
    writer = TocWriter(encoded.extend)
    offset = 512
    for number in range(files):
        if number % 100 == 0:
            folder = b"usr/lib/packages/group-%d/folder-%d/" % (number // 10_000, number // 100)
            writer.add(Entry(folder, stat.S_IFDIR, 0o755, mtime=1_700_000_000))
        size = number % 20_000
        name = folder + b"a-file-with-some-name-%d.py" % number
        writer.add(
            Entry(name, stat.S_IFREG, 0o644, mtime=1_700_000_000 + number % 7, size=size, offset=offset)
        )
        offset += 512 + size + -size % 512
    writer.finish(offset + 1024)
    return bytes(encoded)


def measure(label: str, tocs: list[bytes]) -> None:
    begin = time.perf_counter()
    layers = [read_toc(toc) for toc in tocs]
    metadata = build([LayerToc(layer, layer.tar_size) for layer in layers])
    built = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    validate(metadata.data, metadata.device_size)
    validated = time.perf_counter()
    print(
        f"{label}: {metadata.files} files, build {built - begin:.2f} s, peak {peak:.0f} MiB, "
        f"metadata {len(metadata.data) / 2**20:.1f} MiB, tables {sum(map(len, tocs)) / 2**20:.1f} MiB, "
        f"validate {validated - built:.2f} s"
    )


def walk(path: str) -> bytes:
    encoded = bytearray()
    writer = TocWriter(encoded.extend)
    walker = TarWalker(writer.add)
    begin = time.perf_counter()
    spent = 0.0
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 18):
            start = time.perf_counter()
            walker.feed(chunk)
            spent += time.perf_counter() - start
    writer.finish(walker.finish())
    whole = time.perf_counter() - begin
    rate = walker.position / spent / 1e6
    size = walker.position / 1e6
    print(f"{path}: {writer.members} members, {size:.0f} MB walked at {rate:.0f} MB/s ({whole:.2f} s in all)")
    return bytes(encoded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=int, nargs="*")
    parser.add_argument("--tar", nargs="+", default=[])
    arguments = parser.parse_args()
    if arguments.tar:
        measure("tar", [walk(path) for path in arguments.tar])
        return
    counts = arguments.files or [10_000, 100_000, 1_000_000]
    if len(counts) == 1:
        measure("synthetic", [synthetic(counts[0])])
        return
    for count in counts:
        subprocess.run([sys.executable, __file__, str(count)], check=True)


if __name__ == "__main__":
    main()
