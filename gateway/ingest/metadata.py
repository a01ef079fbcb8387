"""Building a file system's metadata, in a process of its own.

Merging a million files is a minute of pure computation: on a thread it would hold up every reader of this process. Run as
``python -m gateway.ingest.metadata OUTPUT TOC...`` it reads the tables of contents (base layer first), writes the
metadata to OUTPUT and its facts as one line of JSON to standard output; an error that names a layer goes there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.erofs.toc import read_toc
from gateway.erofs.writer import LayerToc, build
from gateway.errors import BlockgateError, BuildFailed, InvalidLayer, StorageError


@dataclass(frozen=True, slots=True)
class BuiltMetadata:
    """What was built: the metadata's size, where each layer's tar lies (bytes), and counts for showing."""

    size: int
    layer_offsets: tuple[int, ...]
    files: int
    directories: int
    symlinks: int
    specials: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """As the process reports it, and as the catalog keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> BuiltMetadata:
        """The reverse."""
        return cls(**{**facts, "layer_offsets": tuple(facts["layer_offsets"])})

    def counts(self) -> dict[str, int]:
        """What people want to know of the file system."""
        return {
            "files": self.files,
            "directories": self.directories,
            "symlinks": self.symlinks,
            "specials": self.specials,
            "bytes": self.bytes,
        }


def build_file(tocs: Sequence[Path], output: Path) -> BuiltMetadata:
    """Build in this process. Raises ``InvalidLayer`` or ``StorageError``."""
    layers = []
    with contextlib.ExitStack() as stack:
        for path in tocs:
            file = stack.enter_context(path.open("rb"))
            toc = read_toc(stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).read())
            layers.append(LayerToc(toc, toc.tar_size))
        built = build(layers)
    output.write_bytes(built.data)
    return BuiltMetadata(
        size=len(built.data),
        layer_offsets=tuple(built.layer_offsets),
        files=built.files,
        directories=built.directories,
        symlinks=built.symlinks,
        specials=built.specials,
        bytes=built.content_bytes,
    )


async def build_in_process(tocs: Sequence[Path], output: Path) -> BuiltMetadata:
    """Build in a process of its own; ends it when cancelled. Raises ``InvalidLayer`` or ``StorageError``."""
    process = _Process([sys.executable, "-m", __name__, str(output), *map(str, tocs)])
    running = asyncio.ensure_future(asyncio.to_thread(process.run))
    try:
        answer, status = await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.to_thread(process.end)
        await asyncio.wait([running])
        raise
    return _answered(answer, status)


class _Process:
    """A process on threads: starting one takes as long as copying this one's page tables, too long for the event loop."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._started: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self) -> tuple[bytes, int]:
        """What it writes, and its exit status."""
        with self._lock:
            if self._ended:
                return b"", -signal.SIGKILL
            self._started = subprocess.Popen(  # noqa: S603 - this program itself
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
        answer, _ = self._started.communicate()
        return answer, self._started.returncode

    def end(self) -> None:
        """Kill it, also if it has not begun yet."""
        with self._lock:
            self._ended = True
            if self._started is not None:
                self._started.kill()


def _answered(answer: bytes, status: int) -> BuiltMetadata:
    try:
        facts: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise BuildFailed(
            f"building the metadata ended with status {status}; see the gateway's log"
        ) from None
    if "error" in facts:
        kinds: dict[str, type[BlockgateError]] = {kind.code: kind for kind in (InvalidLayer, StorageError)}
        raise kinds.get(facts["code"], StorageError)(facts["error"])
    return BuiltMetadata.from_json(facts)


def main(arguments: Sequence[str]) -> int:
    """The process. Exit status 0 also for an error that was reported."""
    output, *tocs = map(Path, arguments)
    try:
        built = build_file(tocs, output)
    except BlockgateError as error:
        print(json.dumps({"error": error.detail, "code": error.code}))  # noqa: T201 - the protocol with the parent
        return 0
    except OSError as error:
        print(json.dumps({"error": f"{error.filename}: {error.strerror}", "code": "storage"}))  # noqa: T201
        return 0
    print(json.dumps(built.to_json()))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
