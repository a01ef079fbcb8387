"""Whose files the demo deletes."""

from pathlib import Path

import pytest

from gateway.demo.show import DemoFailed, claim


def test_a_folder_with_files_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    for name in ("data", "image"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("precious")
    with pytest.raises(DemoFailed, match="did not make"):
        claim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "image"]
    assert [(tmp_path / name / "mine").read_text() for name in ("data", "image")] == ["precious"] * 2


def test_a_folder_of_an_earlier_demo_is_emptied(tmp_path: Path) -> None:
    claim(tmp_path / "demo")
    (tmp_path / "demo" / "data").mkdir()
    (tmp_path / "demo" / "data" / "catalog.sqlite").touch()
    claim(tmp_path / "demo")
    assert not (tmp_path / "demo" / "data").exists()
