"""``blockgate device`` against a gateway."""

from __future__ import annotations

import json
import sys

import httpx
import pytest

from blockgate.calls import Answer, Ask
from gateway.cli.main import main
from tests.support.inprocess import make_layout, quiet_logs, served


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The URL of a gateway, and the folder of its images."""
    quiet_logs()
    folder = tmp_path_factory.mktemp("devices")
    images = make_layout(folder / "images").folder
    with served(folder, images) as (url, _):
        yield url, images


@pytest.fixture
def run(monkeypatch, capfd, gateway):
    monkeypatch.setenv("BLOCKGATE_URL", gateway[0])
    monkeypatch.delenv("BLOCKGATE_TOKEN", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["blockgate", "device", *map(str, arguments)])
        status = main()
        return status, *capfd.readouterr()

    return run


def test_a_device_is_added_shown_and_removed(run, gateway):
    status, out, _ = run("add", "app", f"oci:{gateway[1]}:image")
    assert status == 0
    assert "ready, verified" in out
    status, out, _ = run("show", "app", "--json")
    shown = json.loads(out)
    assert (status, shown["state"], shown["health"]) == (0, "ready", "ok")
    assert httpx.get(shown["data_url"], trust_env=False).headers["etag"] == shown["etag"]
    assert run("rm", "app")[0] == 0
    assert run("show", "app")[0] == 1


def test_an_image_that_does_not_exist_fails_and_says_so_each_time(run, gateway):
    for _ in range(2):
        status, _, err = run("add", "missing", f"oci:{gateway[1]}:missing")
        assert status == 1
        assert "no such tag" in err
    status, out, _ = run("show", "missing")
    assert status == 0
    assert "[image_not_found]" in out


def test_all_devices_are_listed_however_many_pages_they_take(run, gateway, monkeypatch):
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        run("add", name, f"oci:{gateway[1]}:none", "--no-wait")
    monkeypatch.setattr("blockgate.api._PAGE_DEVICES", 2)
    status, out, _ = run("ls", "--json")
    assert status == 0
    assert [device["name"] for device in json.loads(out) if device["name"] in names] == names
    assert all(name in run("ls")[1] for name in names)


def test_while_a_fault_lasts_the_command_ends_with_75_and_the_gateway_goes_on(run, gateway, monkeypatch):
    waiting = {
        "phase": "waiting",
        "done": 0,
        "total": 0,
        "error": {"code": "storage", "detail": "the disk is full"},
    }
    device = {"name": "app", "state": "indexing", "progress": waiting}
    monkeypatch.setattr("blockgate.client.Client._do", lambda _client, step: answer_of(step, device))
    status, out, err = run("add", "app", "image", "--wait", "0")
    assert (status, out) == (75, "")
    assert "the disk is full [storage]; the gateway goes on trying" in err


def answer_of(step, device):
    assert isinstance(step, Ask)
    return Answer(200, {}, json.dumps(device).encode())
