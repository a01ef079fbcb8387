from pathlib import Path

import pytest

from tests.support.guest import run_in_guest


@pytest.mark.real
def test_a_guest_has_this_machines_files_and_a_real_nbd_driver(tmp_path: Path) -> None:
    script = 'test -b /dev/nbd0 && grep -w erofs /proc/filesystems && cat "$0" && echo written >"$SHARE/file"; exit 3'
    ended = run_in_guest(["sh", "-c", script, Path(__file__).resolve()], share=tmp_path)
    assert ended.returncode == 3, ended.output
    assert "def test_a_guest_has_this_machines_files" in ended.output
    assert (tmp_path / "file").read_text() == "written\n"
