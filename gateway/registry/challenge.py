"""``WWW-Authenticate`` parsed (RFC 9110 §11.6.1). Pure.

A header may hold several challenges, separated by the same commas that separate the parameters of one, and
there may be several headers. What cannot be read is skipped up to the next comma: a registry with one odd
challenge beside a usable one stays usable. Never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# Bounds against a hostile registry; real headers hold one or two challenges of a few hundred bytes.
_MAX_HEADER_LENGTH = 16 * 1024
_MAX_CHALLENGES = 32

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's token, not a secret
_SEPARATORS = re.compile(r"[ \t,]*")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}(?![^ \t,])))')
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|$)")
_TOKEN68 = re.compile(r"[ \t]+([A-Za-z0-9._~+/-]+=*)(?=[ \t]*(?:,|$))")
_QUOTED_PAIR = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: ``scheme`` and parameter names in lower case, values as they are, unquoted."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)
    token68: str | None = None


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Every challenge of the given ``WWW-Authenticate`` field values, in order."""
    challenges: list[Challenge] = []
    for header in headers:
        challenges.extend(_parse(header[:_MAX_HEADER_LENGTH]))
    return challenges[:_MAX_CHALLENGES]


def find_challenge(challenges: Iterable[Challenge], scheme: str) -> Challenge | None:
    """The first challenge of ``scheme`` (in lower case)."""
    return next((challenge for challenge in challenges if challenge.scheme == scheme), None)


def _parse(text: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    position = 0
    while (position := _end(_SEPARATORS, text, position)) < len(text):
        # "a=b" can only be a parameter: a scheme is followed by a space, a comma or the end.
        if challenges and (match := _PARAMETER.match(text, position)):
            value = match[3] if match[2] is None else _QUOTED_PAIR.sub(r"\1", match[2])
            challenges[-1].parameters.setdefault(match[1].lower(), value)
            position = match.end()
        elif match := _SCHEME.match(text, position):
            position = match.end()
            token68 = None
            if match68 := _TOKEN68.match(text, position):
                token68 = match68[1]
                position = match68.end()
            challenges.append(Challenge(match[1].lower(), {}, token68))
        else:
            comma = text.find(",", position)
            position = len(text) if comma < 0 else comma
    return challenges


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
