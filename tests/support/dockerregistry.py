"""Debian's docker-registry (CNCF distribution) on a free port of loopback, with or without htpasswd."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_STARTS_WITHIN_SECONDS = 20


@dataclass(frozen=True)
class DockerRegistry:
    """``host`` is ``host:port``; ``credentials`` what it wants, if anything."""

    host: str
    folder: Path
    credentials: tuple[str, str] | None

    async def push(self, layout: Path, tag: str, name: str) -> None:
        """Copy ``layout``'s image ``tag`` to the repository ``name`` under the same tag, with skopeo."""
        auth_file = self.folder / "push-auth.json"
        auths = {}
        if self.credentials:
            username, password = self.credentials
            auths = {
                self.host: {"username": username, "password": password, "auth": _basic(username, password)}
            }
        auth_file.write_text(json.dumps({"auths": auths}))
        await run(
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
            f"--dest-authfile={auth_file}",
            f"oci:{layout}:{tag}",
            f"docker://{self.host}/{name}:{tag}",
        )


def needs(*programs: str) -> None:
    """Skip, naming the first program that is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


async def run(*command: str, data: bytes = b"") -> bytes:
    """Run a program to its end; its output, or a failure with what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate(data)
    assert process.returncode == 0, f"{command[0]}: {output.decode(errors='replace')}"
    return output


@contextlib.asynccontextmanager
async def docker_registry(
    folder: Path, credentials: tuple[str, str] | None = None
) -> AsyncIterator[DockerRegistry]:
    """Start one below ``folder``, wait until it answers, and end it (by its process id) afterwards."""
    needs("docker-registry", "skopeo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if credentials:
        needs("htpasswd")
        username, password = credentials
        entry = await run("htpasswd", "-niB", username, data=password.encode())
        (folder / "htpasswd").write_bytes(entry)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    config_file = folder / "config.yml"
    config_file.write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "docker-registry", "serve", str(config_file), stdout=log, stderr=log
        )
    try:
        await _wait_until_it_answers(process, port, folder / "log")
        yield DockerRegistry(f"127.0.0.1:{port}", folder, credentials)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _wait_until_it_answers(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    async with asyncio.timeout(_STARTS_WITHIN_SECONDS):
        while True:
            assert process.returncode is None, f"docker-registry ended; see {log}"
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /v2/ HTTP/1.0\r\n\r\n")
                answer = await reader.read(12)
                writer.close()
                if answer.startswith(b"HTTP/1."):
                    return
            await asyncio.sleep(0.05)


def _basic(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()
