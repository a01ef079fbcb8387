"""Lets calls to the file system fail in any Python program whose ``PYTHONPATH`` names this folder.

The interpreter imports it at its start, also in processes that the program starts. While the file that
``DISK_FAULTS_CONTROL`` names exists, opening, mapping, reading and changing what it describes fails as a disk
does: an audit hook (PEP 578) raises before the call is made. ``tests.support.diskfault`` writes that file.
"""

import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

_CONTROL = os.environ.get("DISK_FAULTS_CONTROL", "")
#: Changes, and how many of their arguments are paths.
_CHANGES = {"os.mkdir": 1, "os.truncate": 1, "os.rename": 2, "os.link": 2}
_LOOKS = frozenset({"os.listdir", "os.scandir"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_busy = threading.local()


def _name(what: Any) -> str:
    if isinstance(what, int):
        return str(Path(f"/proc/self/fd/{what}").readlink())
    return os.fsdecode(what) if isinstance(what, str | bytes | os.PathLike) else ""


def _check(paths: tuple[Any, ...], *, writing: bool) -> None:
    """Raise what the control file says of these paths."""
    if getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        with Path(_CONTROL).open("rb") as file:
            fault = json.load(file)
        names = [_name(path) for path in paths]
        if fault["writing"] not in (None, writing):
            return
        if not any(re.search(fault["pattern"], name) for name in names):
            return
        # One byte for each failure, counted for all processes.
        hits = os.open(f"{_CONTROL}.hits", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if fault["times"] is not None and os.fstat(hits).st_size >= fault["times"]:
                return
            os.write(hits, b".")
        finally:
            os.close(hits)
    except OSError:
        return
    finally:
        _busy.now = False
    raise OSError(fault["errno"], os.strerror(fault["errno"]), names[0])


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        _check(args[:1], writing=bool((args[2] or 0) & _WRITING))
    elif event == "mmap.__new__":
        if args[0] >= 0:
            _check(args[:1], writing=False)
    elif event in _CHANGES:
        _check(args[: _CHANGES[event]], writing=True)
    elif event in _LOOKS:
        _check(args[:1], writing=False)


def _failing(name: str, *, writing: bool) -> None:
    """Let ``os.NAME``, whose first argument is a descriptor and that no audit event tells of, fail too."""
    call = getattr(os, name)

    def wrapped(descriptor: int, *args: Any) -> Any:
        _check((descriptor,), writing=writing)
        return call(descriptor, *args)

    setattr(os, name, wrapped)


if _CONTROL:
    sys.addaudithook(_hook)
    for _call in ("pread", "preadv"):
        _failing(_call, writing=False)
    for _call in ("pwrite", "pwritev", "ftruncate", "fsync", "fdatasync"):
        _failing(_call, writing=True)
