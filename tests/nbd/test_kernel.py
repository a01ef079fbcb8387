"""The kernel's side: real devices in a throw-away guest."""

from __future__ import annotations

import compileall
import gzip
import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.guest import run_in_guest
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.programs import program
from tests.support.unpacked import Member, pack

HERE = Path(__file__).parent


@pytest.fixture
def image(tmp_path):
    """A folder with a tree, an EROFS image of it, and an OCI layout whose two gzip layers make it."""
    rng = random.Random(31)
    tree = tmp_path / "tree"
    base = []
    for number in range(40):
        name, size = f"folder {number % 5}/file{number}", rng.choice([0, 1, 4096, 70_000, 300_000])
        content = rng.randbytes(size // 2) + b"and the rest is easy" * (size // 40)
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
        base.append(Member(name.encode(), content=content))
    (tree / "link").symlink_to("folder 0/file0")
    base += [
        Member(b"link", stat.S_IFLNK, 0o777, target=b"folder 0/file0"),
        Member(b"folder 1/gone", content=b"gone" * 1000),
    ]
    (tree / "folder 0/file5").write_bytes(replaced := rng.randbytes(123_456))
    (tree / "folder 9").mkdir()
    (tree / "folder 9/new").write_bytes(new := rng.randbytes(1_000_000))
    upper = [
        Member(b"folder 1/.wh.gone"),
        Member(b"folder 0/file5", content=replaced),
        Member(b"folder 9/new", content=new),
    ]
    mkfs = program("mkfs.erofs", "erofs-utils")
    subprocess.run([mkfs, tmp_path / "image.erofs", tree], check=True, stdout=subprocess.DEVNULL)
    layers = [gzip_layer(gzip.compress(tar, 6, mtime=0), tar) for tar in (pack(base), pack(upper))]
    OciLayout(tmp_path / "layout").add_image(layers, tag="latest")
    return tmp_path


@pytest.mark.real
@pytest.mark.timeout(300)
def test_devices_of_a_real_kernel(image):
    program_in_guest = HERE / "guest" / "guest_kernel.py"
    argv = [
        "env",
        f"PYTHONPATH={HERE.parents[1]}",
        "PYTHONDONTWRITEBYTECODE=1",
        sys.executable,
        program_in_guest,
    ]
    # The guest cannot write here: what is not compiled yet would be compiled in every process, emulated.
    for package in ("gateway", "nbd_client", "tests/support"):
        compileall.compile_dir(HERE.parents[1] / package, quiet=2)
    ended = run_in_guest(argv, share=image, seconds=270)
    assert ended.returncode == 0, ended.output
    wanted = re.findall(r"async def (scenario_\w+)", program_in_guest.read_text())
    assert re.findall(r"PASSED (scenario_\w+)", ended.output) == wanted
