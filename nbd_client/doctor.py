"""What of this machine is fit for which way of reading, and what to do about the rest."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbd_client.control import running
from nbd_client.errors import KernelUnsupported
from nbd_client.kernel.netlink import NbdNetlink
from nbd_client.mount import missing_for_fuse


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact. ``advice`` is empty when all is well."""

    subject: str
    good: bool
    text: str
    advice: str = ""


def examine(run_dir: Path, filesystems: Path = Path("/proc/filesystems")) -> Iterator[Finding]:
    """Look at everything that attach and mount need."""
    root = os.geteuid() == 0
    yield Finding(
        "privilege", root, "root" if root else "not root", "" if root else "attach and mount need root"
    )
    try:
        NbdNetlink.open().close()
    except KernelUnsupported as error:
        yield Finding("kernel NBD", False, str(error), "mount --via fuse works without it")
    else:
        yield Finding("kernel NBD", True, "driver with netlink")
    known = filesystems.read_text().split() if filesystems.exists() else []
    erofs = "erofs" in known
    yield Finding(
        "EROFS", erofs, "known to the kernel" if erofs else "not loaded", "" if erofs else "modprobe erofs"
    )
    missing = missing_for_fuse()
    yield Finding(
        "FUSE", not missing, "usable" if not missing else "; ".join(missing), "" if not missing else "install"
    )
    uvloop = importlib.util.find_spec("uvloop") is not None
    yield Finding(
        "uvloop",
        uvloop,
        "installed" if uvloop else "missing",
        "" if uvloop else "pip install 'blockgate[node]'",
    )
    alive = running(run_dir)
    yield Finding("agent", True, f"{'runs' if alive else 'does not run (started when needed)'} in {run_dir}")


def can_mount(findings: list[Finding]) -> bool:
    """Whether one of the two ways of mounting works here."""
    good = {finding.subject for finding in findings if finding.good}
    return {"privilege", "EROFS"} <= good and bool({"kernel NBD", "FUSE"} & good)
