"""Credentials that were given over the API: their file, and who sees which change."""

from __future__ import annotations

import asyncio
import threading

import pytest
from pydantic import SecretStr

from gateway.errors import ConfigurationError, InvalidRequest, StorageError
from gateway.registry import stored as module
from gateway.registry.credentials import Credentials, CredentialStore
from gateway.registry.stored import StoredCredentials

ENTRY = Credentials("me", SecretStr("hunter2"), hosts=("h:5",))
TOKEN = Credentials(identity_token=SecretStr("a-token"), hosts=("h:5", "i"))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "credentials.json"


def test_what_is_kept_comes_back_in_every_process(file):
    writer, reader = StoredCredentials(file), StoredCredentials(file)
    assert reader.entries() == {}
    assert writer.put("a", ENTRY)
    assert writer.put("b", TOKEN)
    assert reader.entries() == {"a": ENTRY, "b": TOKEN}
    changed = Credentials("me", SecretStr("hunter3"), hosts=("h:5",))
    assert not writer.put("a", changed)
    assert reader.entries()["a"].password.get_secret_value() == "hunter3"
    assert writer.remove("a")
    assert not writer.remove("a")
    assert set(reader.entries()) == {"b"}


def test_the_file_is_this_accounts_alone_and_nothing_is_left_beside_it(file):
    stored = StoredCredentials(file)
    stored.put("a", ENTRY)
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == ["credentials.json", "credentials.lock"]


def test_two_writers_lose_nothing_of_each_other(file):
    def write(prefix: str) -> None:
        for number in range(15):
            StoredCredentials(file).put(f"{prefix}{number}", ENTRY)

    threads = [threading.Thread(target=write, args=(prefix,)) for prefix in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(StoredCredentials(file).entries()) == 30


def test_there_is_an_end_to_them(file, monkeypatch):
    monkeypatch.setattr(module, "_MAX_ENTRIES", 1)
    stored = StoredCredentials(file)
    stored.put("a", ENTRY)
    stored.put("a", TOKEN)
    with pytest.raises(InvalidRequest):
        stored.put("b", ENTRY)


@pytest.mark.parametrize(
    "text", ["hunter2", "[]", '{"version": 2}', '{"version": 1, "entries": {"a": {"password": "hunter2"}}}']
)
def test_a_file_that_cannot_be_understood_is_said_without_its_text(file, text):
    file.write_text(text)
    with pytest.raises(StorageError) as caught:
        StoredCredentials(file).entries()
    assert "hunter2" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_folder_that_is_gone_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        StoredCredentials(tmp_path / "gone" / "credentials.json").put("a", ENTRY)


async def test_the_configuration_wins_and_hosts_bind_stored_ones_too(file):
    stored = StoredCredentials(file)
    configured = Credentials("configured", SecretStr("x"), hosts=("h:5",))
    store = CredentialStore(named={"a": configured}, stored=stored)
    await asyncio.to_thread(stored.put, "a", ENTRY)
    await asyncio.to_thread(stored.put, "b", ENTRY)
    assert await store.look_up("h:5", "r", "a") == configured
    assert await store.look_up("h:5", "r", "b") == ENTRY
    with pytest.raises(ConfigurationError, match="not for other:5"):
        await store.look_up("other:5", "r", "b")
    with pytest.raises(ConfigurationError, match="configured or stored"):
        await store.look_up("h:5", "r", "c")
    before = store.revision("b")
    assert (store.revision(None), store.revision("a")) == (None, None)
    await asyncio.to_thread(stored.remove, "b")
    assert store.revision("b") != before
