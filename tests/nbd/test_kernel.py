"""The kernel's side: real devices in a throw-away guest."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.guest import run_in_guest
from tests.support.programs import program

HERE = Path(__file__).parent


@pytest.fixture
def image(tmp_path):
    """A folder with a tree and an EROFS image of it."""
    rng = random.Random(31)
    tree = tmp_path / "tree"
    for number in range(40):
        folder = tree / f"folder {number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(rng.randbytes(rng.choice([0, 1, 4096, 70_000, 300_000])))
    (tree / "link").symlink_to("folder 0/file0")
    mkfs = program("mkfs.erofs", "erofs-utils")
    subprocess.run([mkfs, tmp_path / "image.erofs", tree], check=True, stdout=subprocess.DEVNULL)
    return tmp_path


@pytest.mark.real
@pytest.mark.timeout(240)
def test_devices_of_a_real_kernel(image):
    program_in_guest = HERE / "guest" / "guest_kernel.py"
    argv = [
        "env",
        f"PYTHONPATH={HERE.parents[1]}",
        "PYTHONDONTWRITEBYTECODE=1",
        sys.executable,
        program_in_guest,
    ]
    ended = run_in_guest(argv, share=image, seconds=220)
    assert ended.returncode == 0, ended.output
    wanted = re.findall(r"async def (scenario_\w+)", program_in_guest.read_text())
    assert re.findall(r"PASSED (scenario_\w+)", ended.output) == wanted
