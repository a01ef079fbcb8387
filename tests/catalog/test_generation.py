"""The generation: one number for all processes of a data folder."""

from __future__ import annotations

from gateway.catalog.generation import Generation


def test_everybody_sees_an_advance(tmp_path):
    one, other = Generation(tmp_path / "generation"), Generation(tmp_path / "generation")
    before = other.value()
    one.advance()
    assert other.value() == one.value() != before
    for each in (one, other):
        each.close()


def test_it_wraps_instead_of_overflowing(tmp_path):
    (tmp_path / "generation").write_bytes(b"\xff" * 8)
    generation = Generation(tmp_path / "generation")
    generation.advance()
    assert generation.value() == 0
    generation.close()
