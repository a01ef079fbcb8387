import hashlib
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support import nginx

pytestmark = pytest.mark.real
CONTENT = hashlib.shake_128(b"a file").digest(100_000)


def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
        return response.status, response.read()


@pytest.mark.parametrize("delay_seconds", [0, 0.05])
def test_a_folder_is_served_with_ranges(tmp_path: Path, delay_seconds: float) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file").write_bytes(CONTENT)
    with nginx.serving(folder, state=tmp_path / "state", delay_seconds=delay_seconds) as url:
        assert fetch(f"{url}/file") == (200, CONTENT)
        started = time.monotonic()
        assert fetch(f"{url}/file", Range="bytes=10-99") == (206, CONTENT[10:100])
        # No timer ends early: a delay is a lower bound, on any machine.
        assert time.monotonic() - started >= delay_seconds
    assert "GET /file" in (tmp_path / "state/access.log").read_text()
