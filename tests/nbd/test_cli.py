"""The command line and a running agent, without the kernel's part."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from nbd_client.control import ask, ensure_agent
from nbd_client.errors import AgentError
from tests.support.programs import blockgate_nbd
from tests.support.rangeserver import range_server


@pytest.fixture
async def run_dir(tmp_path):
    """The folder of an agent that runs."""
    folder = tmp_path / "run"
    await asyncio.to_thread(ensure_agent, folder)
    yield folder
    os.kill(agent_pid(folder), signal.SIGTERM)
    async with asyncio.timeout(20):
        while (folder / "agent.sock").exists():
            await asyncio.sleep(0.02)


def agent_pid(run_dir: Path) -> int:
    return int((run_dir / "agent.lock").read_text())


async def test_one_agent_per_folder_whoever_asks_first(run_dir):
    first = agent_pid(run_dir)
    await asyncio.to_thread(ensure_agent, run_dir)
    assert agent_pid(run_dir) == first
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert await asyncio.to_thread(ask, run_dir, "list") == []


async def test_an_agent_that_waits_costs_little_memory(run_dir):
    status = await asyncio.to_thread(Path(f"/proc/{agent_pid(run_dir)}/status").read_text)
    resident_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kib <= 60 * 1024


async def test_a_killed_agent_is_replaced_by_the_next_command(run_dir):
    killed = agent_pid(run_dir)
    os.kill(killed, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, killed, 0)
    await asyncio.to_thread(ensure_agent, run_dir)
    assert agent_pid(run_dir) != killed


async def test_listing_nothing_starts_no_agent(tmp_path):
    env = {"BLOCKGATE_NBD_RUN_DIR": str(tmp_path / "run")}
    done = await blockgate_nbd("list", "--json", env=env)
    assert (done.status, json.loads(done.out)) == (0, [])
    assert not (tmp_path / "run").exists()


REFUSALS = [
    (("attach", "ftp://h/x"), 2, "only http"),
    (("attach", "http://127.0.0.1:1/x?signature=secret"), 2, "query"),
    (("attach", "http://127.0.0.1:1/x", "--device", "/dev/sda"), 2, "/dev/sda is not an NBD device"),
    (("detach", "/dev/nbd0"), 1, "not attached by this agent"),
    (("reattach",), 2, "--all"),
    (("umount", "/"), 2, "was not mounted"),
    (("mount", "http://h/x", "/", "-o", "oci.layer=1"), 2, "this source is a URL"),
]


async def test_what_is_refused_has_its_exit_status_and_no_traceback(run_dir):
    env = {"BLOCKGATE_NBD_RUN_DIR": str(run_dir)}
    for argv, status, text in REFUSALS:  # one agent for all: starting it is what takes long
        done = await blockgate_nbd(*argv, env=env)
        assert (done.status, text in " ".join(done.err.split())) == (status, True), (argv, done.err)
        assert "Traceback" not in done.err
        assert "secret" not in done.err
    assert "secret" not in await asyncio.to_thread((run_dir / "agent.log").read_text)


async def test_an_export_of_the_agent_is_served_until_it_ends(run_dir, tmp_path):
    async with range_server(bytes(4096)) as server:
        size = await asyncio.to_thread(ask, run_dir, "export", url=server.url, path=str(tmp_path / "s"))
        assert size == 4096
        assert (tmp_path / "s").is_socket()
        await asyncio.to_thread(ask, run_dir, "unexport", path=str(tmp_path / "s"))
        assert not (tmp_path / "s").exists()


def test_an_agent_that_cannot_start_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentError, match="cannot write"):
        ensure_agent(tmp_path / "file" / "run")
