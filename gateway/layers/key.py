"""Names of layers and spans: by content and by the way it is cut, never by a URL, a tag or a credential. PURE."""

from __future__ import annotations

from typing import NamedTuple

FORMAT = 2
"""Of an index. Part of each cut's name, so that a change of method changes every key that depends on it."""


class LayerKey(NamedTuple):
    """A layer index. ``blob`` is the digest of the blob as it lies in its source, ``cut`` the way it is cut into spans."""

    blob: str
    cut: str

    def __str__(self) -> str:
        return f"{self.blob} {self.cut}"


class SpanKey(NamedTuple):
    """A span of a layer; what it is cached under."""

    blob: str
    cut: str
    span: int


def cut_name(codec: str, span_size: int, zinfo: str | None = None) -> str:
    """Name of a cut: every ``span_size`` decoded bytes, or where the supplied table ``zinfo`` (its digest) says."""
    if zinfo is not None:
        return f"zinfo-{zinfo.rpartition(':')[2][:32]}-v{FORMAT}"
    return f"{codec}-{span_size}-v{FORMAT}"
