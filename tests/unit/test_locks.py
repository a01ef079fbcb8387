"""Lock files: one holder, gone with it, and no lock from a file that its last holder removed."""

from __future__ import annotations

import fcntl

from gateway import locks
from gateway.locks import try_lock


def test_one_has_the_lock_and_leaves_no_file(tmp_path):
    path = tmp_path / "lock"
    held = try_lock(path)
    assert held is not None
    with held:
        assert try_lock(path) is None
        assert path.exists()
    assert not path.exists()


def test_whoever_comes_in_vain_does_not_remove_the_holders_file(tmp_path):
    path = tmp_path / "lock"
    with try_lock(path):
        assert try_lock(path) is None
        assert try_lock(path) is None
        assert path.exists()


def test_a_file_that_was_removed_between_opening_and_locking_gives_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    real = fcntl.flock

    def flock(fd, how):
        path.unlink()
        if somebody_else_began:
            path.touch()
        real(fd, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    somebody_else_began = False
    assert try_lock(path) is None
    somebody_else_began = True
    assert try_lock(path) is None
