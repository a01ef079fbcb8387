"""A real Debian root as a tar, made once per machine by mmdebstrap from the archive that apt uses here."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import require_program

# Of every file: the tar is the same, byte for byte, while the archive is.
_SOURCE_DATE_EPOCH = 1_750_000_000
_SOURCES = ("sources.list.d/debian.sources", "sources.list.d/ubuntu.sources", "sources.list")


def cache_folder() -> Path:
    """Where tests keep what is dear to make, across runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "blockgate-tests"


def suite() -> str:
    """The suite of this machine's own distribution, whose archive apt reaches and whose keys are here."""
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    pytest.skip("this system is no Debian with a suite (VERSION_CODENAME in /etc/os-release)")


def debian_root_tar() -> Path:
    """The tar of a minimal root (about 170 MB, 9,000 entries); takes 20 seconds the first time, nothing after that.

    Callers in other processes wait for the one that makes it.
    """
    program = require_program("mmdebstrap")
    name = suite()
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    tar = folder / f"{name}-minbase.tar"
    with (folder / f"{name}-minbase.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tar.exists():
            _make(program, name, tar)
    return tar


def _make(program: str, name: str, tar: Path) -> None:
    sources = next(
        (path for path in (Path("/etc/apt", name) for name in _SOURCES) if _has_entries(path)), None
    )
    unfinished = tar.with_name("unfinished-" + tar.name)
    # Only one whole file ever stands under the final name.
    made = subprocess.run(
        [program, "--quiet", "--variant=minbase", name, unfinished, *([sources] if sources else [])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(_SOURCE_DATE_EPOCH)},
    )
    if made.returncode != 0:
        unfinished.unlink(missing_ok=True)
        pytest.skip(f"mmdebstrap could not make a Debian root here: {made.stdout[-1000:]}")
    unfinished.rename(tar)


def _has_entries(sources: Path) -> bool:
    return sources.is_file() and any(
        line.startswith(("deb ", "deb\t", "Types:")) for line in sources.read_text().splitlines()
    )
