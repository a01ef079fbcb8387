"""A throw-away PostgreSQL on a free port of loopback."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.processes import Process, Ready, free_port

# It refuses to run as root; Debian's package brings this account.
_ACCOUNT = "postgres"


def _programs() -> Path:
    """The folder of the newest installed server's programs: Debian keeps one per major version, outside of PATH."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])
    )
    if not versions:
        pytest.skip("the program postgres is missing: install the Debian package postgresql")
    return versions[-1].parent


def _takes_logins(port: int, password: str) -> Ready:
    """Ready once a login succeeds: the port is open before, while the server still starts up."""

    def ready() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(
                host="127.0.0.1",
                port=port,
                user="blockgate",
                password=password,
                dbname="postgres",
                connect_timeout=2,
            ).close()
            return True
        return False

    return ready


@contextlib.contextmanager
def running() -> Iterator[str]:
    """An empty database; yields its URL for SQLAlchemy with psycopg, password included."""
    programs = _programs()
    user = _ACCOUNT if os.geteuid() == 0 else None
    # Not below pytest's tmp_path, whose parents other accounts may not enter.
    folder = Path(tempfile.mkdtemp(prefix="blockgate-postgres-"))
    try:
        password = secrets.token_urlsafe(16)
        (folder / "password").write_text(password)
        if user is not None:
            shutil.chown(folder, user, user)
            shutil.chown(folder / "password", user, user)
        data = folder / "data"
        initdb = [
            programs / "initdb",
            "--pgdata",
            data,
            "--username=blockgate",
            "--encoding=UTF8",
            "--no-locale",
        ]
        initdb += ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
        subprocess.run(
            initdb,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": port,
            "fsync": "off",
        }
        argv = [programs / "postgres", "-D", data]
        argv += [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients to leave.
        process = Process(
            argv,
            log=folder / "log",
            ready=_takes_logins(port, password),
            cwd=folder,
            user=user,
            stop_signal=signal.SIGINT,
        )
        with process:
            yield f"postgresql+psycopg://blockgate:{password}@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder)
