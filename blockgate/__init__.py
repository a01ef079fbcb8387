"""What the gateway and the node client decide by, in one vocabulary, and the client library of the gateway's API.

``blockgate.connect()`` is where programs begin. Nothing here needs more than the standard library and httpx. Neither
program is imported from here; both import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockgate.client import Client


def connect(url: str | None = None, *, token: str | None = None) -> Client:
    """A client of the gateway at ``url``; by default where ``BLOCKGATE_URL`` and ``BLOCKGATE_TOKEN`` say."""
    from blockgate.client import Client  # noqa: PLC0415  httpx is slow to import

    return Client(url, token=token)
