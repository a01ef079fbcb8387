"""Inflating spans: this project's ``inflate_span`` against stdlib zlib and bare libisal, same spans.

    python -m benchmarks.inflate [FILE.tar.gz] [--span-size BYTES] [--rounds N]

Without a file, a tar.gz of Python's standard library is made in memory. Contenders take turns on every span
group, so that a busy machine slows all of them; printed are ratios of medians of CPU time.

- ``zlib``: ``zlib.decompressobj(-15, zdict=window)`` on input that was completed to whole bytes beforehand
- ``libisal``: one ``IgzipDecompressor`` call, likewise
- ``inflate_span``: what the gateway calls, from the blob's own bytes, with all of its checks
"""

from __future__ import annotations

import argparse
import io
import sysconfig
import tarfile
import time
import zlib
from functools import partial
from pathlib import Path

from isal import igzip_lib

from benchmarks.report import Row, in_turns
from gateway.gzran import span, zinfo
from gateway.gzran.checkpoints import CheckpointBuilder
from gateway.gzran.inflate import inflate_span
from tests.support import zinfo_tables

NOTES = (
    "target 1: zlib and libisal get input that was aligned to whole bytes beforehand, and check nothing",
)


def standard_library_tar_gz():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        tar.add(sysconfig.get_path("stdlib"), "lib", filter=_without_site_packages)
    return buffer.getvalue()


def _without_site_packages(member):
    return None if "site-packages" in member.name or "/test" in member.name else member


def index(blob, span_size):
    records = []

    def on_output(_view):
        pass

    def on_checkpoint(point, window):
        records.append(zinfo.record(point, window))

    builder = CheckpointBuilder(span_size, on_output, on_checkpoint)
    builder.feed(blob)
    totals = builder.finish()
    table = zinfo.parse(zinfo.header(len(records), span_size) + b"".join(records), blob_size=len(blob))
    return table, totals.uncompressed_size


def spans(blob, table, size):
    for i in range(table.n):
        start, end = span.compressed_range(table, i, len(blob))
        first, last = zinfo_tables.output_range(table, i, size)
        compressed = memoryview(blob)[start:end]
        yield compressed, table.bits[i], bytes(table.window(i)), last - first, i == 0


def with_zlib(whole, _compressed, _bits, window, length, _first):
    return zlib.decompressobj(-15, zdict=window).decompress(whole, length)


def with_libisal(whole, _compressed, _bits, window, length, _first):
    return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE, 15, window).decompress(whole, length)


def with_inflate_span(_whole, compressed, bits, window, length, first):
    return inflate_span(compressed, bits, window, length, first=first, exact=True)


CONTENDERS = {"zlib": with_zlib, "libisal": with_libisal, "inflate_span": with_inflate_span}


def measure(blob, span_size, rounds):
    """Medians of CPU seconds per contender for the whole blob, the number of spans, and decoded bytes."""
    table, size = index(blob, span_size)
    work = [(zinfo_tables.byte_aligned(s[0], s[1]), *s) for s in spans(blob, table, size)]

    def timed(run):
        started = time.thread_time()
        for item in work:
            run(*item)
        return time.thread_time() - started

    medians = in_turns({name: partial(timed, run) for name, run in CONTENDERS.items()}, rounds)
    return medians, table.n, size


def against_targets(blob, rounds):
    """Target 1, for the table of all targets."""
    medians, _, size = measure(blob, 1 << 20, rounds)
    detail = ", ".join(f"{name} {size / seconds / 1e6:.0f} MB/s" for name, seconds in medians.items())
    ours = medians["inflate_span"]
    return [
        Row(1, "span inflate vs stdlib zlib, per CPU second", medians["zlib"] / ours, "≥2", "x", detail),
        Row(1, "span inflate vs bare libisal, per CPU second", medians["libisal"] / ours, "≥0.95", "x"),
    ]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("file", nargs="?", type=Path)
    arguments.add_argument("--span-size", type=int, default=1 << 20)
    arguments.add_argument("--rounds", type=int, default=15)
    options = arguments.parse_args()
    blob = options.file.read_bytes() if options.file else standard_library_tar_gz()
    medians, count, size = measure(blob, options.span_size, options.rounds)
    print(f"{count} spans of {options.span_size} bytes, {size / 1e6:.1f} MB, {options.rounds} rounds")
    for name, median in medians.items():
        print(
            f"{name:>13}  {size / median / 1e6:7.0f} MB per CPU second"
            f"  {medians['zlib'] / median:5.2f} x zlib  {medians['libisal'] / median:5.2f} x libisal"
        )


if __name__ == "__main__":
    main()
