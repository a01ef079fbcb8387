"""The data folder: one gateway's, of one format; what dead processes left unfinished is removed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blockgate import durable
from gateway.datafolder import FORMAT, DataFolder
from gateway.errors import ConfigurationError, StorageError


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_new_folder_is_made_and_keeps_its_id(tmp_path):
    data = DataFolder(tmp_path / "a" / "data")
    with data.claimed():
        first = data.id()
        for folder in (data.layers, data.artifacts, data.cache, data.scratch, data.locks):
            assert folder.is_dir()
    with data.claimed():
        assert data.id() == first
    assert json.loads(data.version.read_text()) == {"format": FORMAT, "id": first}


@pytest.mark.parametrize("kept", ["catalog.sqlite", "layers/x"])
def test_a_folder_of_version_0_1_is_refused_and_left_alone(tmp_path, kept):
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_bytes(b"something")
    before = files(tmp_path)
    with pytest.raises(ConfigurationError, match=r"made by version 0\.1"), DataFolder(tmp_path).claimed():
        pytest.fail("it was taken")
    assert files(tmp_path) == before


@pytest.mark.parametrize("text", ['{"format": 3}', '{"format": 1}', "", "[]", '{"id": "x"}', '"2"'])
def test_a_folder_of_another_format_is_refused_and_left_alone(tmp_path, text):
    (tmp_path / "VERSION").write_text(text)
    with pytest.raises(ConfigurationError, match="this version reads 2"), DataFolder(tmp_path).claimed():
        pytest.fail("it was taken")
    assert files(tmp_path) == ["VERSION"]
    assert (tmp_path / "VERSION").read_text() == text


def test_a_second_gateway_is_refused_while_the_first_one_lives(tmp_path):
    data = DataFolder(tmp_path)
    with data.claimed():
        with pytest.raises(ConfigurationError, match="another gateway uses"), DataFolder(tmp_path).claimed():
            pytest.fail("it was taken")
        code = (
            "import sys, pathlib; from gateway.datafolder import DataFolder\n"
            "with DataFolder(pathlib.Path(sys.argv[1])).claimed(): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False, timeout=60
        )
        assert "another gateway uses" in other.stderr
    with data.claimed():
        pass


def test_gateways_that_start_together_in_a_new_folder_agree_on_its_id(tmp_path, monkeypatch):
    """The one that comes second must not change the id under the first one's feet."""
    first, ids = DataFolder(tmp_path), []
    real = durable.replace

    def replace(path, content, **options):
        if not ids:
            ids.append("asked")
            with (
                pytest.raises(ConfigurationError, match="another gateway uses"),
                DataFolder(tmp_path).claimed(),
            ):
                pytest.fail("it was taken")
        real(path, content, **options)

    monkeypatch.setattr(durable, "replace", replace)
    with first.claimed():
        assert len(first.id()) == 32


def test_a_folder_that_cannot_be_used_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--data-dir"), DataFolder(tmp_path / "file").claimed():
        pytest.fail("it was taken")


def test_what_was_left_unfinished_is_removed_and_nothing_else(tmp_path):
    data = DataFolder(tmp_path)
    with data.claimed():
        pass
    (data.cache / "tmp").mkdir()
    kept = [data.artifacts / ("a" * 64), data.layers / "x", tmp_path / "credentials.json"]
    for path in kept:
        path.write_text("kept")
    for folder in (tmp_path, data.scratch, data.cache / "tmp"):
        (folder / durable.scratch_name()).write_text("unfinished")
    (data.scratch / durable.scratch_name("draft")).mkdir()
    data.run.mkdir()
    (data.run / "counts").write_text("of the last life")
    with data.claimed():
        assert list(tmp_path.rglob("*.tmp")) == []
        assert not data.run.exists()
        assert all(path.read_text() == "kept" for path in kept)


def test_only_what_one_dead_process_left_is_removed_while_others_work(tmp_path):
    data = DataFolder(tmp_path)
    with data.claimed():
        mine = data.scratch / durable.scratch_name()
        dead = data.scratch / "new.999999.abc.tmp"
        for path in (mine, dead):
            path.write_text("")
        data.sweep(999999)
        assert (mine.exists(), dead.exists()) == (True, False)


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
def test_an_id_that_cannot_be_read_is_a_storage_error(tmp_path, text):
    if text is not None:
        (tmp_path / "VERSION").write_text(text)
    with pytest.raises(StorageError, match="VERSION"):
        DataFolder(tmp_path).id()


def test_a_lock_that_cannot_be_taken_is_a_storage_error(tmp_path):
    (tmp_path / "locks" / "gateway").mkdir(parents=True)
    with pytest.raises(StorageError, match="--data-dir"), DataFolder(tmp_path).claimed():
        pytest.fail("it was taken")


def test_a_start_that_was_cut_short_is_not_taken_for_version_0_1(tmp_path, monkeypatch):
    """Whatever is made of a folder, it says what it is before anything else is in it."""
    real, made = Path.mkdir, []

    def mkdir(path, *args, **options):
        made.append(path.name)
        if len(made) > limit:
            raise KeyboardInterrupt
        real(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    for limit in range(1, 5):
        made.clear()
        with pytest.raises(KeyboardInterrupt), DataFolder(tmp_path / str(limit)).claimed():
            pytest.fail("it was taken")
    monkeypatch.undo()
    for limit in range(1, 5):
        with DataFolder(tmp_path / str(limit)).claimed():
            pass
