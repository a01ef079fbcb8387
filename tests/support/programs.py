"""Programs of the machine that tests run: found or skipped by name, bounded in time, never left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

_PATH = os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"])


def program(name: str, package: str) -> str:
    """The absolute path of a program; without it the test skips, saying what to install."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed (package {package})")
    return found


@dataclass(frozen=True, slots=True)
class Finished:
    status: int
    out: str
    err: str


async def run(
    *argv: object, seconds: float = 60, stdin: str | None = None, env: dict[str, str] | None = None
):
    """Run to the end, at most ``seconds``; then it is killed and the test fails."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(stdin.encode() if stdin is not None else None)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return Finished(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


async def blockgate_nbd(*argv: object, seconds: float = 30, env: dict[str, str] | None = None) -> Finished:
    """Run the node client's command line to its end."""
    return await run(sys.executable, "-m", "nbd_client.cli", *argv, seconds=seconds, env=env)


@asynccontextmanager
async def started(*argv: object, until: str, seconds: float = 30, env: dict[str, str] | None = None):
    """A program that goes on running, once it wrote a line with ``until`` to standard error."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    seen = []
    drain = None
    try:
        async with asyncio.timeout(seconds):
            while until not in "".join(seen[-1:]):
                line = await process.stderr.readline()
                if not line:
                    raise AssertionError(f"{argv[0]} ended before it was ready: {''.join(seen)}")
                seen.append(line.decode(errors="replace"))

        async def collect() -> None:
            while line := await process.stderr.readline():
                seen.append(line.decode(errors="replace"))

        drain = asyncio.create_task(collect())
        process.seen = seen
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if drain is not None:
            await drain


def serving(url: str, *argv: object, env: dict[str, str] | None = None):
    """``blockgate-nbd serve`` in a process of its own."""
    return started(sys.executable, "-m", "nbd_client.cli", "serve", url, *argv, until="serving", env=env)
