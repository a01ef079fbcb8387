from __future__ import annotations

import os

import pytest

from nbd_client.config import NodeSettings, load
from nbd_client.environment import configured
from nbd_client.errors import InvalidOption, SourceRefused
from nbd_client.source.stack import SourceOptions, open_source
from tests.support.rangeserver import range_server


@pytest.fixture(autouse=True)
def _no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKGATE_NBD_CONFIG", str(tmp_path / "nbd.toml"))


def test_the_defaults_are_the_sources_own():
    assert load().source_options() == SourceOptions()


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch, tmp_path):
    (tmp_path / "nbd.toml").write_text('connections = 1\ncache = "1MiB"\nreadahead = 4096\n')
    monkeypatch.setenv("BLOCKGATE_NBD_CONNECTIONS", "2")
    monkeypatch.setenv("BLOCKGATE_NBD_CACHE", "2 MiB")
    settings = load(connections=3, cache=None)
    assert (settings.connections, settings.cache, settings.readahead) == (3, 2 << 20, 4096)


@pytest.mark.parametrize("text", ["nonsense = 1\n", 'connections = "x"\n', "connections = 0\n", "= broken"])
def test_what_cannot_be_is_refused(tmp_path, text):
    (tmp_path / "nbd.toml").write_text(text)
    with pytest.raises(InvalidOption):
        load()


def test_every_setting_says_what_it_means():
    assert all(field.description for field in NodeSettings.model_fields.values())


def test_the_agents_folder_is_no_setting_of_the_file(tmp_path):
    """Each command looks for the agent before it reads the file: what the file said would be read by nobody."""
    (tmp_path / "nbd.toml").write_text('run_dir = "/elsewhere"\n')
    with pytest.raises(InvalidOption, match="run_dir"):
        load()


def test_the_ladder_of_deadlines_climbs():
    settings = load()
    assert 25 < settings.attempt_timeout_seconds < settings.read_timeout_seconds < 90


def test_a_setting_or_a_file_counts_as_configured_and_the_run_folder_does_not(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("BLOCKGATE_NBD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BLOCKGATE_NBD_CONFIG", str(tmp_path / "nbd.toml"))
    monkeypatch.setenv("BLOCKGATE_NBD_RUN_DIR", "/x")
    assert not configured()
    monkeypatch.setenv("blockgate_nbd_cache", "1MiB")
    assert configured()
    monkeypatch.delenv("blockgate_nbd_cache")
    (tmp_path / "nbd.toml").write_text("")
    assert configured()


async def test_the_token_goes_to_the_urls_own_host_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("BLOCKGATE_TOKEN", "sesame")
    options = load().source_options()
    assert "sesame" not in repr(options)
    async with range_server(b"x" * 4096) as other, range_server(b"") as server:

        def redirect(request, answer):
            answer.status, answer.body, answer.fields = 307, b"", {"Location": other.url}

        server.faults.append(redirect)
        source = await open_source(server.url, options)
        assert await source.read(0, 10) == b"x" * 10
        await source.aclose()
        assert [request.fields.get(b"authorization") for request in server.requests] == [b"Bearer sesame"]
        assert all(b"authorization" not in request.fields for request in other.requests)


async def test_a_token_that_is_refused_is_told_without_it():
    def unauthorized(request, answer):
        answer.status, answer.body, answer.fields = 401, b"", {}

    async with range_server(b"x" * 4096) as server:
        server.faults.append(unauthorized)
        with pytest.raises(SourceRefused, match="401") as caught:
            await open_source(server.url, SourceOptions(token="sesame"))
        assert "sesame" not in str(caught.value)
    with pytest.raises(InvalidOption):
        await open_source(server.url, SourceOptions(token="a\r\nX: y"))


async def test_no_readahead_means_none():
    async with range_server(bytes(1 << 20)) as server:
        source = await open_source(server.url, load(readahead="0").source_options())
        for offset in range(0, 1 << 18, 4096):
            await source.read(offset, 4096)
        assert server.count == 1 + 64
        await source.aclose()
