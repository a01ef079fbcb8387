"""Writing files so that a name, once it is there, stands for whole content, also after a power cut.

The order is the one of rename(2) and fsync(2): write under another name, fsync the content, rename, fsync the folder.
Everything that either program keeps on a disk is written by these functions. All of them block.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of what is not complete yet."""


def scratch_name(label: str = "new") -> str:
    """A name that no other writer uses; it holds the process id, so that a dead writer's files can be told."""
    return f"{label}.{os.getpid()}.{uuid.uuid4().hex[:12]}{TEMPORARY}"


def replace(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Make ``data`` the content of ``path``: readers see the old content or the new, whole.

    With ``sync`` it survives a power cut once this returns. Raises ``OSError``; the old content is then untouched.
    """
    temporary = path.with_name(scratch_name(f".{path.name}"))
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_folder(path.parent)


def publish(temporary: Path, target: Path) -> None:
    """Give a finished file or folder its name. Its content, all of it, is on the disk before the name is.

    Raises ``OSError``; a folder that is in the way is one of its reasons.
    """
    if temporary.is_dir():
        for path in temporary.iterdir():
            _sync(path)
    _sync(temporary)
    temporary.rename(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` survive a power cut."""
    _sync(folder)


def sweep(folder: Path, pid: int | None = None) -> int:
    """Remove what dead writers left unfinished in ``folder``, all of them or the process ``pid``; returns how many."""
    removed = 0
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*{TEMPORARY}" if pid is None else f"*.{pid}.*{TEMPORARY}"):
            with contextlib.suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    for inner in path.iterdir():
                        inner.unlink()
                    path.rmdir()
                else:
                    path.unlink()
                removed += 1
    return removed


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
