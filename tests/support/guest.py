"""A throw-away virtual machine with a real NBD driver, for tests of the kernel's side.

Two folders must be there: scripts that start the machine (``BLOCKGATE_KERNEL_VM``, by default ``shared/kernel-vm``
beside the repository), and the kernel that their ``setup.sh DIR`` unpacked (``BLOCKGATE_KERNEL_DIR``, by default
``.test-cache/kernel``).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.programs import Finished, program, run

ROOT = Path(__file__).resolve().parents[2]


async def run_in_guest(out: Path, *argv: object, seconds: float = 110) -> Finished:
    """Run a command as root in the guest, from the repository's root; ``out`` is writable as /run/out there."""
    scripts = Path(os.environ.get("BLOCKGATE_KERNEL_VM") or ROOT.parent / "shared" / "kernel-vm")
    kernel = Path(os.environ.get("BLOCKGATE_KERNEL_DIR") or ROOT / ".test-cache" / "kernel")
    if not (scripts / "vmrun.sh").is_file():
        pytest.skip(f"no scripts that start a guest in {scripts} (BLOCKGATE_KERNEL_VM)")
    if not (kernel / "kver").is_file():
        pytest.skip(f"no kernel in {kernel} (BLOCKGATE_KERNEL_DIR); {scripts}/setup.sh puts one there")
    program("qemu-system-x86_64", "qemu-system-x86")
    return await run(
        *(
            "bash",
            scripts / "vmrun.sh",
            kernel,
            "env",
            f"PYTHONPATH={ROOT}",
            "PYTHONDONTWRITEBYTECODE=1",
            *argv,
        ),
        seconds=seconds,
        env={"OUT": str(out), "VMTIMEOUT": str(int(seconds) - 15), "PWD": str(ROOT)},
    )
