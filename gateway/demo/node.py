"""The node's half of the demo: the device mounted by the kernel, where this machine can do that.

The node client is another program; it is run, not imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 60
_DRIVER = Path("/sys/module/nbd")


@dataclass(frozen=True, slots=True)
class Mount:
    """Where the device is mounted and how; or why it is not, and what to do."""

    folder: Path | None
    way: str = ""
    reason: str = ""


@contextmanager
def mounted(url: str, folder: Path) -> Iterator[Mount]:
    """Mount a device below ``folder`` for as long as the ``with`` block runs. Never raises: the demo goes on without."""
    missing = _missing()
    if missing:
        yield Mount(None, reason=missing)
        return
    where, run_dir = folder / "mnt", folder / "run"
    for each in (where, run_dir):
        each.mkdir(parents=True, exist_ok=True)
    log = folder / "node.log"
    with log.open("wb") as output:
        # An agent of the demo's own, so that it ends with the demo.
        agent = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "nbd_client.agent_main", "--run-dir", str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a terminal's Ctrl-C is for the demo; what is mounted needs its server until the end
        )
    try:
        done = _run("mount", url, str(where), "--run-dir", str(run_dir))
        if done.returncode:
            yield Mount(None, reason=done.stderr.strip() or f"see {log}")
            return
        try:
            yield Mount(where, way=done.stdout.strip().rpartition("(")[2].rstrip(")"))
        finally:
            ended = _run("umount", str(where), "--run-dir", str(run_dir))
            if ended.returncode:
                print(ended.stderr.strip(), file=sys.stderr)  # noqa: T201 - the last words of a command
    finally:
        agent.terminate()
        agent.wait()


def _missing() -> str:
    if os.geteuid() != 0:
        return "mounting needs root"
    if "erofs" not in Path("/proc/filesystems").read_text() and not shutil.which("modprobe"):
        return "this kernel has no EROFS"
    if not _DRIVER.exists() and not shutil.which("nbdfuse"):
        return "neither the kernel's nbd driver (modprobe nbd) nor nbdfuse (Debian: libnbd-bin and fuse3) is here"
    return ""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "nbd_client.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
