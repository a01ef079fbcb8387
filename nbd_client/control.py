"""How the command line and the agent talk: one JSON object per line over a unix socket in the run folder.

A request is ``{"command": ..., **arguments}``; the answer ``{"result": ...}`` or ``{"error": {"code", "detail"}}``,
which becomes the same exception on the other side.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from nbd_client.errors import AgentError, BlockgateError, UsageError, leaves

log = logging.getLogger(__name__)

DEFAULT_RUN_DIR = Path("/run/blockgate-nbd")
_MAX_LINE_BYTES = 64 << 10
_START_SECONDS = 60.0
_ANSWER_SECONDS = 120.0

Handler = Callable[..., Awaitable[object]]


def socket_path(run_dir: Path) -> Path:
    """Where the agent of ``run_dir`` listens."""
    return run_dir / "agent.sock"


async def serve_control(run_dir: Path, handlers: Mapping[str, Handler]) -> asyncio.Server:
    """Answer requests until the server is closed. Only the owner of the folder can connect."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line:
                writer.write(json.dumps(await _dispatch(line, handlers)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            log.debug("a control connection broke: %s", error)
        finally:
            writer.close()

    return await asyncio.start_unix_server(answer, str(socket_path(run_dir)), limit=_MAX_LINE_BYTES)


async def _dispatch(line: bytes, handlers: Mapping[str, Handler]) -> dict[str, object]:
    try:
        request = json.loads(line)
        handler = handlers[request.pop("command")]
    except (ValueError, LookupError, TypeError, AttributeError):
        return _failure(AgentError("the agent does not understand this request; is it another version?"))
    try:
        return {"result": await handler(**request)}
    except BlockgateError as error:
        return _failure(error)
    except Exception:
        log.exception("%s failed unexpectedly", handler.__name__)
        return _failure(AgentError("the agent failed unexpectedly; its log says more"))


def _failure(error: BlockgateError) -> dict[str, object]:
    return {"error": {"code": error.code, "detail": error.detail, "usage": isinstance(error, UsageError)}}


def ask(run_dir: Path, command: str, **arguments: object) -> Any:
    """Send one request to the running agent. Raises what the agent raised, or ``AgentError``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(str(socket_path(run_dir)))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer = json.loads(answers.readline())
        except (OSError, ValueError) as error:
            raise AgentError(f"the agent in {run_dir} does not answer ({error})") from error
    if "error" not in answer:
        return answer["result"]
    code, detail = answer["error"]["code"], answer["error"]["detail"]
    kinds: dict[str, type[BlockgateError]] = {kind.code: kind for kind in leaves()}
    kind = kinds.get(code, UsageError if answer["error"].get("usage") else BlockgateError)
    failure = BlockgateError.__new__(kind)  # a leaf's own constructor may want more than a text
    BlockgateError.__init__(failure, detail)
    raise failure


def running(run_dir: Path) -> bool:
    """Whether an agent answers in ``run_dir``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(socket_path(run_dir))) == 0


def spawn(argv: list[str], output_fd: int, environment: Mapping[str, str]) -> int:
    """Start a program that outlives this one, in a session of its own; return its process id."""
    return os.posix_spawn(
        argv[0],
        argv,
        {**os.environ, **environment},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output_fd, 1),
            (os.POSIX_SPAWN_DUP2, output_fd, 2),
        ],
        setsid=True,
    )


def ensure_agent(run_dir: Path) -> None:
    """Start the agent unless it runs. Raises ``AgentError`` with the end of its log when it does not come up."""
    if running(run_dir):
        return
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_fd = os.open(run_dir / "agent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AgentError(f"cannot write to {run_dir}: {error.strerror}; run it as root") from error
    # -m with the interpreter that runs this: the same environment, and no search of PATH.
    argv = [sys.executable, "-m", "nbd_client.agent_main", "--run-dir", str(run_dir)]
    try:
        pid = spawn(argv, log_fd, {"PYTHONPATH": str(Path(__file__).parent.parent)})
    finally:
        os.close(log_fd)
    end = time.monotonic() + _START_SECONDS
    while not running(run_dir):
        ended, status = os.waitpid(pid, os.WNOHANG) if pid else (0, 0)
        if ended:
            pid = 0  # with status 0 it left the field to another one, which is about to answer
        if time.monotonic() > end or status:
            lines = (run_dir / "agent.log").read_text(errors="replace").splitlines()
            raise AgentError(f"the agent did not start: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.02)
