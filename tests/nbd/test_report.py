"""Nodes that report themselves."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client import report as module
from nbd_client.agent import Agent
from nbd_client.kernel.sysfs import Sysfs
from nbd_client.recovery import Records
from nbd_client.report import NODE_NAME, Attached, Reporter, node_name, reports
from nbd_client.source.stack import SourceOptions, open_source
from tests.support.inprocess import TOKENS, bearer, make_layout, quiet_logs, served, token_entries


def device(url: str, **fields) -> Attached:
    return Attached(
        **{
            "node_device": "/dev/nbd0",
            "mountpoint": None,
            "state": "connected",
            "read_bytes": 1,
            "errors": 0,
            "url": url,
            **fields,
        }
    )


@given(st.text())
def test_any_host_has_a_name_that_gateways_take(host):
    assert re.match(NODE_NAME, node_name(host))


def test_devices_are_told_to_where_they_come_from_and_other_urls_to_nobody():
    found = reports(
        [
            device("http://a:1/v1/devices/one/data"),
            device("http://a:1/v1/devices/two/data", mountpoint="/x" * 500),
            device("https://b/under/v1/devices/three/data"),
            device("http+unix://%2Frun%2Fg.sock/v1/devices/four/data"),
            device("http://a:1/v1/devices/UPPER/data"),
            device("http://a:1/v1/devices/one/data/more"),
            device("http://cdn/image.erofs"),
            device("nonsense"),
        ]
    )
    told = {
        (gateway.authority, gateway.prefix): [one["name"] for one in devices]
        for gateway, devices in found.items()
    }
    assert told == {("a:1", ""): ["one", "two"], ("b", "/under"): ["three"], ("localhost", ""): ["four"]}
    assert (
        max(len(str(value)) for devices in found.values() for one in devices for value in one.values()) <= 500
    )


@pytest.fixture
def gateway(tmp_path):
    quiet_logs()
    layout = make_layout(tmp_path / "images")
    with served(tmp_path, layout.folder, tokens=token_entries(**TOKENS)) as (url, _):
        source = {"image": f"oci:{layout.folder}:image"}
        with httpx.Client(base_url=url, headers=bearer(TOKENS["admin"]), trust_env=False) as client:
            client.put("/v1/devices/app", json={"source": source, "layout": "tar", "layer": {"index": 0}})
            client.get("/v1/devices/app/events")  # ends once it is ready
            yield client, f"{url}/v1/devices/app/data"


def nodes(client: httpx.Client) -> list[dict]:
    return client.get("/v1/stats").json()["nodes"]


async def test_the_gateway_shows_the_node_with_its_devices_until_there_are_none(gateway, tmp_path):
    client, url = gateway
    (tmp_path / "run").mkdir()

    async def open_url(url, *, pin=None):
        return await open_source(url, SourceOptions(token=TOKENS["node"]), pin=pin)

    agent = Agent(Records(tmp_path / "run"), lambda: None, Sysfs(tmp_path), open_url=open_url)
    await agent.export(url, tmp_path / "s")
    reporter = Reporter("node-1", agent.attached, token=TOKENS["node"])
    await reporter.tell()
    (shown,) = [node for node in await asyncio.to_thread(nodes, client) if node["name"] == "node-1"]
    assert not shown["silent"]
    assert shown["version"] == module.__version__
    assert shown["devices"] == [
        {
            "name": "app",
            "node_device": str(tmp_path / "s"),
            "mountpoint": None,
            "state": "connected",
            "read_bytes": 0,
            "errors": 0,
        }
    ]
    await agent.unexport(tmp_path / "s")
    await reporter.tell()
    async with asyncio.timeout(20):  # what is shown is gathered every half second
        while (await asyncio.to_thread(nodes, client))[0]["devices"]:
            await asyncio.sleep(0.05)


async def test_a_gateway_that_does_not_listen_is_said_once_and_never_with_the_token(caplog, leap):
    caplog.set_level(logging.DEBUG)
    answers = iter(
        [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"nonsense\r\n", b"", None, b"HTTP/1.1 204 No Content\r\n\r\n"]
    )
    seen = []

    async def answer(reader, writer):
        seen.append(await reader.readuntil(b"}]}"))
        text = next(answers)
        if text is None:
            leap(module._TIMEOUT_SECONDS)
            await reader.read()  # says nothing until the other side goes
        else:
            writer.write(text)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/devices/a/data"
    reporter = Reporter("n", lambda: [device(url)], token="sesame")
    for _ in range(4):
        await reporter.tell()
    assert [record.levelname for record in caplog.records if record.name == module.__name__] == ["INFO"]
    await reporter.tell()
    server.close()
    await reporter.tell()
    assert len([record for record in caplog.records if record.name == module.__name__]) == 2
    assert "sesame" not in caplog.text
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/nodes/n/report HTTP/1.1\r\n")
    assert b"Authorization: Bearer sesame" in head
    assert json.loads(body)["devices"][0]["name"] == "a"


async def test_it_goes_on_for_as_long_as_the_agent_does(monkeypatch):
    rounds = []
    reporter = Reporter("n", lambda: rounds.append(1) or [])
    task = asyncio.create_task(reporter.run(0.001))
    async with asyncio.timeout(20):
        while len(rounds) < 3:
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
