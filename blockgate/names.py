"""Names of devices, and the URL paths at which a gateway offers one. PURE."""

from __future__ import annotations

import re
from urllib.parse import quote

DEVICE_NAME = r"^[a-z0-9][a-z0-9._-]{0,127}$"
"""The pattern, for schemas. Nodes and stored credentials are named by the same rule."""

DATA_PATH = "/v1/devices/{name}/data"
"""Route of a device's bytes by its name."""

CONTENT_PATH = "/v1/content/{etag}/data"
"""Route of a device's bytes by what they are; ``etag`` is the entity tag without its quotes."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}", re.ASCII)


def is_device_name(text: str) -> bool:
    """Whether ``text`` can name a device."""
    return _NAME.fullmatch(text) is not None


def device_path(name: str) -> str:
    """URL path of a device, whatever its name is typed as."""
    return f"/v1/devices/{quote(name, safe='')}"


def data_path(name: str) -> str:
    """URL path of a device's bytes by its name."""
    return f"{device_path(name)}/data"


def content_path(etag: str) -> str:
    """URL path of the bytes that have the strong entity tag ``etag``, written with or without its quotes."""
    return f"/v1/content/{quote(etag.strip(chr(34)), safe='')}/data"
