"""Disks that fail for a while, without root and without a device: see ``diskfaults/sitecustomize.py``."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOOK = Path(__file__).parent / "diskfaults"


class DiskFaults:
    """Faults of the programs that are started with ``env``; ``folder`` receives what steers them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._control = folder / "fault.json"
        self._hits = folder / "fault.json.hits"

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(_HOOK), "DISK_FAULTS_CONTROL": str(self._control)}

    @property
    def hits(self) -> int:
        """How many calls have failed since ``failing`` began."""
        return self._hits.stat().st_size if self._hits.exists() else 0

    @contextmanager
    def failing(
        self, error: int, pattern: str, *, times: int | None = None, writing: bool | None = None
    ) -> Iterator[None]:
        """Calls fail with this errno for paths in which ``pattern`` is found.

        Args:
            error: of ``errno``.
            pattern: a regular expression.
            times: how many calls fail; None: all of them, for as long as the block lasts.
            writing: only calls that open for writing or change something (True), or only others (False).
        """
        self._hits.unlink(missing_ok=True)
        fresh = self._control.with_suffix(".fresh")
        fresh.write_text(json.dumps({"errno": error, "pattern": pattern, "times": times, "writing": writing}))
        fresh.replace(self._control)
        try:
            yield
        finally:
            self._control.unlink()
