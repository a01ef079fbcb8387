"""Building checkpoints against ``gzip -dc``: CPU time on the same file, in turns, ratio of medians.

python -m benchmarks.checkpoints FILE.tar.gz [--span-size BYTES] [--rounds N]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import time
from pathlib import Path

from gateway.gzran.checkpoints import CheckpointBuilder

_PIECE_BYTES = 64 * 1024


def nothing(*_arguments):
    pass


def build(blob, span_size):
    started = time.thread_time()
    builder = CheckpointBuilder(span_size, nothing, nothing)
    for start in range(0, len(blob), _PIECE_BYTES):
        builder.feed(blob[start : start + _PIECE_BYTES])
    builder.finish()
    return time.thread_time() - started


def gunzip(path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["gzip", "-dc", path], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--span-size", type=int, default=1 << 20)
    arguments.add_argument("--rounds", type=int, default=9)
    options = arguments.parse_args()
    blob = options.file.read_bytes()
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(build(blob, options.span_size))
        theirs.append(gunzip(options.file))
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"CheckpointBuilder: {ratio:.2f} x gzip -dc per CPU second ({len(blob) / 1e6:.1f} MB compressed)")


if __name__ == "__main__":
    main()
