"""The disk that fails on demand: which calls of another program fail, how often, and that nothing else does."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.diskfault import DiskFaults

CALLS = {
    "open": "open(path, 'rb').close()",
    "os.open": "os.open(path, os.O_RDONLY)",
    "mapping": "mmap.mmap(held, 0, access=mmap.ACCESS_READ)",
    "os.pread": "os.pread(held, 1, 0)",
    "listing": "os.listdir(os.path.dirname(path))",
}
CHANGES = {
    "open for writing": "open(path, 'r+b').close()",
    "os.pwrite": "os.pwrite(held, b'x', 0)",
    "os.fsync": "os.fsync(held)",
    "os.rename": "os.rename(path, path + '2')",
    "os.mkdir": "os.mkdir(os.path.dirname(path) + '/folder')",
}


@pytest.fixture
def faults(tmp_path: Path) -> DiskFaults:
    return DiskFaults(tmp_path / "faults")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "file"
    path.parent.mkdir()
    path.write_bytes(b"content")
    return path


def run(faults: DiskFaults, path: Path, *calls: str) -> list[int]:
    """The errno of each call in another program; 0 for one that succeeds."""
    steps = "".join(
        f"try:\n    {call}\n    print(0)\nexcept OSError as error:\n    print(error.errno)\n"
        for call in calls
    )
    # Opened before faults are looked for: what is held is tested apart from opening.
    with path.open("r+b") as held:
        program = f"import mmap, os\npath = {str(path)!r}\nheld = {held.fileno()}\n{steps}"
        out = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | faults.env,
            pass_fds=[held.fileno()],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    return [int(line) for line in out.stdout.split()]


def test_without_a_fault_every_call_is_made(faults: DiskFaults, path: Path) -> None:
    assert not any(run(faults, path, *CALLS.values()))


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_read_fail_with_the_errno(call: str, faults: DiskFaults, path: Path) -> None:
    with faults.failing(errno.EIO, "data", writing=False):
        assert run(faults, path, CALLS[call]) == [errno.EIO]
        assert faults.hits == 1
    assert run(faults, path, CALLS[call]) == [0]


@pytest.mark.parametrize("call", CHANGES)
def test_calls_that_change_something_fail_with_the_errno(call: str, faults: DiskFaults, path: Path) -> None:
    with faults.failing(errno.ENOSPC, "data", writing=True):
        assert run(faults, path, CHANGES[call]) == [errno.ENOSPC]
        assert faults.hits == 1
    assert run(faults, path, CHANGES[call]) == [0]


def test_only_so_many_calls_fail_as_are_wanted(faults: DiskFaults, path: Path) -> None:
    with faults.failing(errno.EMFILE, "data/file", times=2, writing=False):
        assert run(faults, path, *[CALLS["open"]] * 3) == [errno.EMFILE, errno.EMFILE, 0]
        assert run(faults, path, CALLS["open"]) == [0]


def test_other_paths_are_left_alone(faults: DiskFaults, path: Path, tmp_path: Path) -> None:
    with faults.failing(errno.EIO, "elsewhere"):
        assert not any(run(faults, path, *CALLS.values()))
        assert faults.hits == 0
