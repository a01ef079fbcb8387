"""Debian's docker-registry (CNCF distribution) on a free port of loopback, with or without htpasswd."""

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Process, free_port, port_answers, require_program


@dataclass(frozen=True)
class DockerRegistry:
    """`host` is `host:port`; `credentials` what it wants, if anything, also written to `auth_file` (docker's format)."""

    host: str
    folder: Path
    credentials: tuple[str, str] | None

    @property
    def auth_file(self) -> Path:
        return self.folder / "auth.json"

    def push(self, layout: Path, tag: str, name: str) -> None:
        """Copy a layout's image `tag` to the repository `name` under the same tag, with skopeo."""
        _run(
            require_program("skopeo"),
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
            f"--dest-authfile={self.auth_file}",
            f"oci:{layout}:{tag}",
            f"docker://{self.host}/{name}:{tag}",
        )


@contextlib.contextmanager
def docker_registry(folder: Path, credentials: tuple[str, str] | None = None) -> Iterator[DockerRegistry]:
    """Run one whose storage, configuration and log are in `folder`, from when it answers until the block's end."""
    program = require_program("docker-registry")
    port = free_port()
    registry = DockerRegistry(f"127.0.0.1:{port}", folder, credentials)
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
        "http": {"addr": registry.host},
    }
    auths = {}
    if credentials:
        username, password = credentials
        htpasswd = require_program("htpasswd", package="apache2-utils")
        (folder / "htpasswd").write_bytes(_run(htpasswd, "-niB", username, data=password.encode()))
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        auths[registry.host] = {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}
    registry.auth_file.write_text(json.dumps({"auths": auths}))
    config_file = folder / "config.yml"
    config_file.write_text(json.dumps(config))  # JSON is YAML
    with Process([program, "serve", config_file], log=folder / "log", ready=port_answers(port)):
        yield registry


def _run(*command: str, data: bytes = b"") -> bytes:
    """A program's output; the test fails with it if the program does."""
    done = subprocess.run(
        command, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout.decode(errors='replace')}"
    return done.stdout
