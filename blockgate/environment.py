"""Where the gateway is and what it knows us by, as the environment says."""

from __future__ import annotations

import os

DEFAULT_URL = "http://127.0.0.1:8080"


def gateway_url() -> str:
    """``BLOCKGATE_URL``, or the gateway of this machine."""
    return os.environ.get("BLOCKGATE_URL") or DEFAULT_URL


def gateway_token() -> str | None:
    """``BLOCKGATE_TOKEN``: from the environment alone, so that it is in no argument list or record."""
    return os.environ.get("BLOCKGATE_TOKEN") or None
