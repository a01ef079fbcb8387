"""Where the demo puts its files, and whose files it removes there: none but its own."""

import pytest

from gateway.demo.show import MARK, DemoFailed, prepare
from tests.support.gateway import cli


def test_files_that_no_demo_made_are_refused_and_untouched(tmp_path):
    kept = tmp_path / "data" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    done = cli("demo", "--folder", tmp_path, "--port", "0", "--once")
    assert done.returncode != 0
    assert "files that no demo made" in done.stderr
    assert kept.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "nothing was made there either"


def test_a_folder_that_is_no_folder_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoFailed, match="file: "):
        prepare(tmp_path / "file")


def test_what_an_earlier_demo_left_is_removed_and_all_else_stays(tmp_path):
    folder = tmp_path / "demo"
    prepare(folder)
    for name in ("image", "data"):
        (folder / name).mkdir()
        (folder / name / "old").write_text("old")
    (folder / "notes.txt").write_text("mine")
    prepare(folder)
    assert sorted(path.name for path in folder.iterdir()) == [MARK, "notes.txt"]
