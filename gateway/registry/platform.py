"""Platforms ``os/arch[/variant]``: parsed, normalised and matched with variant fallback. Pure.

Names are those of Go (image-spec, image-index.md); the spellings of ``uname -m`` are accepted. A variant is a
promise that grows: a machine that runs arm/v7 runs arm/v6 too, so the nearest lower variant is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import InvalidRequest

_PART = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "i386": "386",
    "i686": "386",
}
# What an architecture means without a variant. Both are dropped from the canonical form, as registries do.
_BASE_VARIANTS = {"amd64": "v1", "arm64": "v8"}
_ARM_DEFAULT = "v7"
_VARIANT = re.compile(r"v([0-9]{1,3})(?:\.([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True)
class Platform:
    """A normalised platform. ``variant`` is empty where the architecture's baseline is meant."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform:
    """Parse ``os/arch[/variant]``. Raises ``InvalidRequest`` saying what is wrong."""
    parts = text.split("/")
    if len(parts) not in {2, 3} or not all(_PART.fullmatch(part) for part in parts):
        raise InvalidRequest(
            f"{text[:100]!r} is not a platform; write os/arch or os/arch/variant, as linux/arm64/v8"
        )
    return normalise(*parts)


def normalise(os: str, architecture: str, variant: str = "") -> Platform:
    """Bring the spellings in use to one form: lower case, Go's names, no baseline variant."""
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if re.fullmatch(r"[0-9]{1,3}", variant):
        variant = f"v{variant}"
    if architecture == "arm" and not variant:
        variant = _ARM_DEFAULT
    if variant == _BASE_VARIANTS.get(architecture):
        variant = ""
    return Platform(os, architecture, variant)


def choose(wanted: Platform, offered: Sequence[Platform | None]) -> int | None:
    """Index of the best offer: the same variant, else the highest lower one; None where nothing runs.

    Equal offers: the first wins, as the index' order is the publisher's preference.
    """
    best: int | None = None
    best_level = (-1, -1)
    for index, platform in enumerate(offered):
        if platform is None or (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
            continue
        if platform.variant == wanted.variant:
            return _first(platform, offered)
        have, need = _level(platform), _level(wanted)
        if have is not None and need is not None and best_level < have <= need:
            best, best_level = index, have
    return best


def _first(platform: Platform, offered: Sequence[Platform | None]) -> int:
    return offered.index(platform)


def _level(platform: Platform) -> tuple[int, int] | None:
    text = platform.variant or _BASE_VARIANTS.get(platform.architecture, "v0")
    match = _VARIANT.fullmatch(text)
    return (int(match[1]), int(match[2] or 0)) if match else None
