"""Lock files that die with their process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


def try_lock(path: Path) -> AbstractContextManager[None] | None:
    """Take the lock of a file, or return ``None`` when another process (or another call in this one) has it.

    The file is removed when the lock is released; the kernel releases it when the process dies.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        current = path.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(fd)
        return None
    ours = os.fstat(fd)
    if (ours.st_dev, ours.st_ino) != (current.st_dev, current.st_ino):
        # Its last holder removed it between our opening and locking it.
        os.close(fd)
        return None
    return _held(path, fd)


@contextmanager
def _held(path: Path, fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


@contextmanager
def held(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file that stays, among all processes and calls; blocking. Raises ``OSError``.

    ``shared`` holders exclude only others that are not. Without ``wait`` it is ``BlockingIOError`` when it is held.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)
