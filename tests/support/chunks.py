"""The same bytes, cut differently: what a sans-I/O machine must not notice."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def cuts(draw, data: bytes) -> list[bytes]:
    """``data`` in pieces."""
    points = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *points], [*points, len(data)], strict=True)]
