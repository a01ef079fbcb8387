"""Devices mounted by this machine's kernel, against GNU tar's extraction of the same layers. Needs root."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from gateway.erofs.entry import Entry
from gateway.erofs.tarstream import TarWalker
from gateway.erofs.writer import LayerToc, build
from tests.support.erofsimage import device_of, metadata_of
from tests.support.kernelmount import (
    base_layer,
    describe,
    made_directories,
    mounted,
    need_kernel_mounts,
    unpack_with_tar,
    upper_layer,
)
from tests.support.unpacked import Member, pack

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def needs():
    need_kernel_mounts()


def test_the_kernel_shows_what_gnu_tar_would_have_unpacked(tmp_path):
    layers = [base_layer(), upper_layer()]
    image = tmp_path / "device"
    image.write_bytes(device_of([pack(layer) for layer in layers]))
    unpack_with_tar(layers, tmp_path / "unpacked")
    made = made_directories(layers)
    with mounted(image, tmp_path / "mnt") as mount:
        actual = describe(mount, made)
    wanted = describe(tmp_path / "unpacked", made)
    assert sorted(actual) == sorted(wanted)
    differences = {path: (actual[path], wanted[path]) for path in wanted if actual[path] != wanted[path]}
    assert differences == {}
    assert len(actual) > 440


def test_sparse_files_show_their_holes_as_zeros(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name, places, size in (
        ("some", (0, 3 << 20), 5 << 20),
        ("many", range(0, 4 << 20, 1 << 17), 4 << 20),
        ("none", (), 1 << 20),
    ):
        with (root / name).open("wb") as file:
            for place in places:
                file.seek(place)
                file.write(os.urandom(4096))
            file.truncate(size)
    tar = tmp_path / "layer.tar"
    subprocess.run(["tar", "-C", str(root), "--sparse", "-cf", str(tar), "."], check=True, timeout=60)
    image = tmp_path / "device"
    image.write_bytes(device_of([pack([Member(b"below", content=b"b" * 700)]), tar.read_bytes()]))
    assert image.stat().st_size < 400_000
    with mounted(image, tmp_path / "mnt") as mount:
        for path in root.iterdir():
            assert (mount / path.name).read_bytes() == path.read_bytes()
        assert (mount / "below").read_bytes() == b"b" * 700


def test_a_directory_of_seventy_thousand_files_lists_and_looks_up(tmp_path):
    entries = [Entry(b"d/%05d" % n, stat.S_IFREG, 0o644) for n in range(70_000)]
    entries.append(Entry(b"d/last", stat.S_IFREG, 0o644, size=4, offset=512))
    metadata = build([LayerToc(entries, 1024)])
    image = tmp_path / "device"
    image.write_bytes(bytes(metadata.data) + bytes(512) + b"here" + bytes(4096 - 516))
    with mounted(image, tmp_path / "mnt") as mount:
        assert len(list((mount / "d").iterdir())) == 70_001
        assert (mount / "d" / "last").read_bytes() == b"here"
        assert (mount / "d" / "00000").stat().st_size == 0
        assert (mount / "d" / "69999").stat().st_size == 0


def test_an_empty_image_mounts(tmp_path):
    image = tmp_path / "device"
    image.write_bytes(device_of([pack([])]))
    with mounted(image, tmp_path / "mnt") as mount:
        assert list(mount.iterdir()) == []
        assert mount.stat().st_nlink == 2


def test_files_beyond_four_gib_keep_their_size_and_place(tmp_path):
    """The device is sparse: only a marker at the end of a file of 5 GiB is really there."""
    size = 5 * 2**30 + 3
    head = pack([Member(b"huge", content=b"")])[:512]
    fields = bytearray(head)
    fields[124:136] = b"\x80" + size.to_bytes(11, "big")
    fields[148:156] = b" " * 8
    fields[148:156] = b"%06o\0 " % sum(fields)

    entries = []
    walker = TarWalker(entries.append)
    walker.feed(bytes(fields))
    assert [(entry.path, entry.size, entry.offset) for entry in entries] == [(b"huge", size, 512)]
    tar_size = 512 + size + -size % 512
    after = LayerToc([entries[0]._replace(path=b"after", size=5, offset=512)], 1024)
    metadata = build([LayerToc(entries, tar_size), after])
    image = tmp_path / "device"
    with image.open("wb") as file:
        file.write(metadata.data)
        file.seek(metadata.layer_offsets[0] + 512 + size - 3)
        file.write(b"end")
        file.seek(metadata.layer_offsets[1] + 512)
        file.write(b"after")
        file.truncate(metadata.device_size)
    with mounted(image, tmp_path / "mnt") as mount, (mount / "huge").open("rb") as huge:
        assert (mount / "huge").stat().st_size == size
        huge.seek(-3, os.SEEK_END)
        assert huge.read() == b"end"
        assert (mount / "after").read_bytes() == b"after"


def test_fsck_and_dump_of_erofs_utils_accept_a_device(tmp_path):
    """Of the recent erofs-utils that scripts/fetch-erofs-utils.sh unpacks: Debian 12's read no 512-byte blocks."""
    fetched = Path(os.environ.get("EROFS_UTILS", ".test-cache/erofs-utils")) / "bin"
    if not (fetched / "fsck.erofs").exists():
        pytest.skip("erofs-utils >= 1.7 is missing: scripts/fetch-erofs-utils.sh .test-cache/erofs-utils")
    layers = [base_layer(), upper_layer()]
    metadata = metadata_of([pack(layer) for layer in layers])
    device = bytearray(device_of([pack(layer) for layer in layers]))
    # fsck.erofs 1.8 computes a negative length, and crashes, when it checks the checksum of a 512-byte block:
    # it gets a copy that says that it has none.
    device[1028:1032] = bytes(4)
    device[1032] &= ~1
    image = tmp_path / "device"
    image.write_bytes(device)
    out = tmp_path / "extracted"
    checked = subprocess.run(
        [fetched / "fsck.erofs", f"--extract={out}", "--preserve", image],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (out / "etc/passwd-hard").read_bytes() == b"root\n"
    assert (out / "sizes/4097").stat().st_size == 4097
    dumped = subprocess.run(
        [fetched / "dump.erofs", "-s", image], capture_output=True, text=True, timeout=60, check=False
    )
    assert dumped.returncode == 0, dumped.stderr
    assert f"{metadata.device_size // 512}" in dumped.stdout
