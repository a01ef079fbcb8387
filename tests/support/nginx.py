"""A real web server in front of a folder: static files with Range and ETag, as fast or as slow as a test wants."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Process, free_port, port_answers, require_program

_ECHO_MODULE = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")

_CONFIGURATION = """\
{modules}
daemon off;
worker_processes {workers};
user {user};
pid {state}/pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log {state}/access.log;
    client_body_temp_path {state}/body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    default_type application/octet-stream;
    keepalive_requests 1000000;
    sendfile on;
    server {{
        listen 127.0.0.1:{port};
        location / {{ {answer} }}
        location @files {{ root {folder}; }}
    }}
}}
"""


@contextlib.contextmanager
def serving(
    folder: Path, *, state: Path, delay_seconds: float = 0, workers: int = 1, user: str = "root"
) -> Iterator[str]:
    """Serve `folder` on a free port of loopback; yields the base URL, without a slash at its end.

    Args:
        folder: what is served.
        state: an empty folder for the server's own files; its `access.log` tells every request.
        delay_seconds: what every answer waits before its first byte, as a distant server's would.
        workers: worker processes; one is enough for any delay, since waiting requests share it.
        user: the account of the workers. Only root may choose it, and test folders are readable by their owner alone.
    """
    program = require_program("nginx", package="nginx-light")
    modules, answer = "", f"root {folder};"
    if delay_seconds:
        if not _ECHO_MODULE.exists():
            pytest.skip(
                f"nginx's echo module is missing ({_ECHO_MODULE}): install the Debian package nginx-light"
            )
        modules = f"load_module {_ECHO_MODULE};"
        answer = f"echo_sleep {delay_seconds:.3f}; echo_exec @files;"
    port = free_port()
    state.mkdir(parents=True, exist_ok=True)
    configuration = state / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            modules=modules, answer=answer, folder=folder, state=state, port=port, workers=workers, user=user
        )
    )
    argv = [program, "-c", configuration, "-e", "stderr"]
    with Process(argv, log=state / "nginx.log", ready=port_answers(port)):
        yield f"http://127.0.0.1:{port}"
