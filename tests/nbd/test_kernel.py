"""The kernel's side: real devices in a throw-away guest."""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import pytest

from tests.support.guest import run_in_guest
from tests.support.programs import program, run

HERE = Path(__file__).parent


@pytest.fixture
async def image(tmp_path):
    """A folder with a tree and an EROFS image of it."""
    rng = random.Random(31)
    tree = tmp_path / "tree"
    for number in range(40):
        folder = tree / f"folder {number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(rng.randbytes(rng.choice([0, 1, 4096, 70_000, 300_000])))
    (tree / "link").symlink_to("folder 0/file0")
    done = await run(program("mkfs.erofs", "erofs-utils"), tmp_path / "image.erofs", tree)
    assert done.status == 0, done.err
    size = os.path.getsize(tmp_path / "image.erofs")
    assert size % 512 == 0
    return tmp_path


@pytest.mark.real
@pytest.mark.timeout(240)
async def test_devices_of_a_real_kernel(image):
    program_in_guest = HERE / "guest" / "guest_kernel.py"
    done = await run_in_guest(image, sys.executable, program_in_guest, seconds=220)
    assert done.status == 0, done.out + done.err
    wanted = re.findall(r"async def (scenario_\w+)", program_in_guest.read_text())
    assert re.findall(r"PASSED (scenario_\w+)", done.out) == wanted
