"""Logs: JSON lines on a pipe, readable ones on a terminal, in the shape of the gateway's.

With the standard library alone: structlog brings rich, which would be a third of an idle agent's memory and of the time
that a successor takes to go on with a mount.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_LONGEST = 2000


class JsonLines(logging.Formatter):
    """One object a line: ``event``, ``level``, ``timestamp``, and ``exception`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "event": record.getMessage()[:_LONGEST],
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: int = logging.INFO) -> None:
    """Set logging up for this process, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(plain if sys.stderr.isatty() else JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
