"""A real Debian root as a tar, made once per machine by mmdebstrap from the archive that apt uses here."""

import fcntl
import os
import subprocess
from collections.abc import Callable
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
    """The tar of a minimal root (170 MB, 9,000 entries); takes 20 seconds the first time, nothing after that."""
    program = require_program("mmdebstrap")
    name = suite()

    def make(tar: Path) -> None:
        sources = next(
            (path for path in (Path("/etc/apt", name) for name in _SOURCES) if _has_entries(path)), None
        )
        argv = [program, "--quiet", "--variant=minbase", name, tar, *([sources] if sources else [])]
        made = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(_SOURCE_DATE_EPOCH)},
        )
        if made.returncode != 0:
            pytest.skip(f"mmdebstrap could not make a Debian root here: {made.stdout[-1000:].strip()}")

    return made_once(f"{name}-minbase.tar", make)


def debian_root_tar_gz() -> Path:
    """The same root by `gzip -6` (60 MB), a layer as most are; takes 7 seconds more the first time."""
    tar = debian_root_tar()

    def make(blob: Path) -> None:
        with blob.open("wb") as file:
            subprocess.run(["gzip", "-6", "-n", "-c", tar], stdin=subprocess.DEVNULL, stdout=file, check=True)

    return made_once(f"{tar.name}.gz", make)


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The cached file of that name, made now if it is missing; other processes wait for the one that makes it."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with (folder / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            # Only a whole file ever stands under the final name. The suffix stays: programs go by it.
            unfinished = folder / f"unfinished-{name}"
            try:
                make(unfinished)
                unfinished.rename(path)
            finally:
                unfinished.unlink(missing_ok=True)
    return path


def _has_entries(sources: Path) -> bool:
    return sources.is_file() and any(
        line.startswith(("deb ", "deb\t", "Types:")) for line in sources.read_text().splitlines()
    )
