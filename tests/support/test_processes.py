import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.processes import (
    Process,
    free_port,
    http_answers,
    port_answers,
    require_program,
    socket_answers,
    wait_until,
)


def test_a_process_serves_inside_its_block_and_is_gone_after_it(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "greeting").write_text("hello")
    argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", tmp_path, str(port)]
    with Process(
        argv, log=tmp_path / "log", ready=http_answers(f"http://127.0.0.1:{port}/missing")
    ) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/greeting", timeout=5) as response:
            assert response.read() == b"hello"
        assert server.returncode is None
    assert server.returncode == -signal.SIGTERM
    assert not port_answers(port)()
    assert "GET /missing" in server.output


def test_a_program_that_ends_at_once_is_reported_with_what_it_said(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('no such configuration')"]
    with (
        pytest.raises(RuntimeError, match="ended before it was ready") as raised,
        Process(argv, log=tmp_path / "log", ready=port_answers(free_port())),
    ):
        pass
    assert "no such configuration" in raised.value.__notes__[0]


def test_a_program_that_never_answers_is_ended(tmp_path: Path) -> None:
    process = Process(
        ["sleep", "60"], log=tmp_path / "log", ready=socket_answers(tmp_path / "socket"), start_seconds=0.1
    )
    with pytest.raises(TimeoutError, match="sleep was not ready"), process:
        pass
    assert process.returncode == -signal.SIGTERM


def test_a_program_deaf_to_its_stop_signal_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    with Process([sys.executable, "-c", script], log=log, stop_seconds=0.1) as process:
        wait_until(lambda: "deaf" in process.output, what="the script")
    assert process.returncode == -signal.SIGKILL


def test_a_missing_program_skips_naming_its_package() -> None:
    with pytest.raises(pytest.skip.Exception, match="install the Debian package tools-of-nobody"):
        require_program("no-such-program", package="tools-of-nobody")
