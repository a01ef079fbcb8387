"""Content digests as OCI writes them: ``sha256:`` and 64 hexadecimal digits (image-spec, descriptor.md). PURE."""

from __future__ import annotations

import hashlib
import re

DIGEST = r"^sha256:[0-9a-f]{64}$"
"""The pattern, for schemas."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest that is understood here."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes | memoryview) -> str:
    """The digest of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hex_of(digest: str) -> str:
    """The digest without its algorithm."""
    return digest.rpartition(":")[2]
