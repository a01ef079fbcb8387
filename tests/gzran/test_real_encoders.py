"""Streams as the encoders of the field write them, and their own decoders as the truth."""

import random
import shutil
import subprocess
import sysconfig
import tarfile
from pathlib import Path

import pytest

from gateway.gzran import backends, span
from gateway.gzran.inflate import inflate_span
from tests.support import zinfo_tables

pytestmark = pytest.mark.real

SPAN_SIZE = 200_000
ENCODERS = {
    "gzip -1": ["gzip", "-1"],
    "gzip -6": ["gzip", "-6"],
    "gzip -9": ["gzip", "-9"],
    "gzip --rsyncable": ["gzip", "--rsyncable"],
    "pigz": ["pigz", "-p", "2"],
    "pigz -i": ["pigz", "-i", "-p", "2"],
    "pigz -0": ["pigz", "-0"],
    "pigz -11": ["pigz", "-11", "-I", "1"],
    "igzip": ["igzip", "-2", "-c", "-"],
}


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    """A tar of Python sources, with a part that does not compress."""
    path = tmp_path_factory.mktemp("layer") / "layer.tar"
    noise = path.with_name("noise")
    noise.write_bytes(random.Random(1).randbytes(400_000))
    with tarfile.open(path, "w") as archive:
        archive.add(Path(sysconfig.get_path("stdlib")) / "asyncio", "asyncio")
        archive.add(noise, "noise")
    return path.read_bytes()[:2_000_000]


def compress(encoder, plain):
    if shutil.which(ENCODERS[encoder][0]) is None:
        pytest.skip(f"{ENCODERS[encoder][0]} is not installed")
    return subprocess.run(
        ENCODERS[encoder], input=plain, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_span_of_what_the_encoder_writes_inflates_to_the_truth(encoder, tar):
    plain = tar[:300_000] if encoder == "pigz -11" else tar
    span_size = SPAN_SIZE // 4 if encoder == "pigz -11" else SPAN_SIZE
    blob = compress(encoder, plain)
    built = zinfo_tables.build(blob, span_size)
    assert built.output == plain
    table = built.table(span_size)
    assert table.n > 2
    assert zinfo_tables.build(blob, expected=table, chunk=10_007).points == built.points
    for backend in (backends.igzip, backends.stdlib):
        for i in range(table.n):
            start, end = span.compressed_range(table, i, len(blob))
            first, last = zinfo_tables.output_range(table, i, len(plain))
            output = inflate_span(
                memoryview(blob)[start:end],
                table.bits[i],
                table.window(i),
                last - first,
                first=i == 0,
                exact=True,
                backend=backend,
            )
            assert output == plain[first:last]


def test_a_named_file_has_its_name_in_the_header(tmp_path, tar):
    path = tmp_path / "a-layer-with-a-name.tar"
    path.write_bytes(tar)
    subprocess.run(["gzip", "-6", path], check=True, timeout=60)
    built = zinfo_tables.build(path.with_suffix(".tar.gz").read_bytes(), SPAN_SIZE)
    assert built.points[0].in_offset == 10 + len("a-layer-with-a-name.tar") + 1
    assert built.output == tar


def test_concatenated_files_of_several_encoders_are_one_layer(tar):
    third = len(tar) // 3
    blob = b"".join(
        compress(encoder, tar[i * third : (i + 1) * third])
        for i, encoder in enumerate(("gzip -9", "pigz -i", "gzip -1"))
    )
    built = zinfo_tables.build(blob, SPAN_SIZE)
    assert built.output == tar[: 3 * third]
    assert built.totals.members == 3
