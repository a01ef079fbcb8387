"""``blockgate demo`` as a user runs it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from gateway.demo.show import progress_text
from tests.support.gateway import cli


@pytest.mark.real
def test_the_demo_compares_everything_and_ends(tmp_path: Path) -> None:
    done = cli("demo", "--folder", tmp_path / "demo", "--port", "0", "--once")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 different") >= 2
    for device in ("demo", "demo-layer0", "demo-layer1"):
        assert re.search(rf"device {device}: \d+ MiB, verified", done.stdout)
    # Mounted where this machine can, else the reason and the command.
    assert (
        "files read through the kernel: 0 different" in done.stdout
        or "blockgate-nbd mount http" in done.stdout
    )
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@pytest.mark.real
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_the_demo_stays_up_serves_ranges_and_ends_with_a_signal(tmp_path: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-m", "gateway", "demo", "--folder", str(tmp_path / "demo"), "--port", "0"]
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 100
        while "stays up until" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        url = re.search(r"a gateway at (http://\S+)", output.read_text())
        assert url is not None
        answer = httpx.get(
            f"{url[1]}/v1/devices/demo/data", headers={"Range": "bytes=1024-1027"}, trust_env=False
        )
        assert answer.status_code == 206
        assert answer.content == bytes.fromhex("e2e1f5e0")  # EROFS' magic, little-endian
    finally:
        if end is signal.SIGINT:
            os.killpg(process.pid, end)  # a terminal's Ctrl-C goes to every program of the group
        else:
            process.send_signal(end)
        assert process.wait(60) == 0
    assert output.read_text().rstrip().endswith("It stays up until Ctrl-C."), "nothing went wrong at the end"
    assert not list((tmp_path / "demo").rglob("*.mount.json"))
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (None, "it begins"),
        ({"phase": "indexing", "done": 3 << 20, "total": 9 << 20, "error": None}, "3 of 9 MiB"),
        (
            {
                "phase": "waiting",
                "done": 0,
                "total": 0,
                "error": {"code": "storage", "detail": "no space"},
                "attempt": 2,
            },
            "attempt 2 met no space; it is tried again",
        ),
    ],
)
def test_the_demo_says_how_far_a_registration_is_and_what_it_waits_for(progress, text) -> None:
    assert progress_text(progress) == text
