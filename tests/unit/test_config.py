"""Settings: flags over environment over file over defaults; wrong ones are named; secrets are not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockgate.environment import gateway_token, gateway_url
from gateway.api.server import check_exposure
from gateway.config import Settings, load
from gateway.errors import ConfigurationError

TOKEN = {"sha256": "a" * 64, "role": "admin"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("BLOCKGATE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.toml"

    def write(text):
        path.write_text(text)
        return path

    return write


def test_flags_win_over_environment_and_environment_over_file(file, monkeypatch):
    path = file('port = 1\nworkers = 2\nhost = "127.0.0.9"\n')
    assert (load(path).port, load(path).workers, load(path).host) == (1, 2, "127.0.0.9")
    monkeypatch.setenv("BLOCKGATE_PORT", "3")
    monkeypatch.setenv("BLOCKGATE_WORKERS", "4")
    made = load(path, port=5, workers=None)
    assert (made.port, made.workers, made.host) == (5, 4, "127.0.0.9")


def test_the_file_may_be_named_by_the_environment(file, monkeypatch):
    monkeypatch.setenv("BLOCKGATE_CONFIG", str(file("port = 7\n")))
    assert load().port == 7


def test_one_calls_file_is_not_the_next_calls(file):
    assert load(file("port = 7\n")).port == 7
    assert load().port == 8080
    with pytest.raises(ConfigurationError):
        load(file("prot = 7\n"))
    assert Settings().port == 8080


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("SPAN_SIZE", "4MiB", "span_size", 4 << 20),
        ("OCI_ROOTS", '["/a", "/b"]', "oci_roots", (Path("/a"), Path("/b"))),
        ("MIRRORS", '{"docker.io": ["https://m"]}', "mirrors", {"docker.io": ("https://m",)}),
        ("DRAIN_SECONDS", "0", "drain_seconds", 0.0),
        ("ALLOW_ANONYMOUS", "1", "allow_anonymous", True),
    ],
)
def test_every_kind_of_setting_comes_from_the_environment(monkeypatch, name, value, field, expected):
    monkeypatch.setenv(f"BLOCKGATE_{name}", value)
    assert getattr(load(), field) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ports = 1\n", "ports"),
        ('port = "x"\n', "port"),
        ("port = 70000\n", "port"),
        ("workers = 0\n", "workers"),
        ('span_size = "1KiB"\n', "span_size"),
        ('log_level = "loud"\n', "log_level"),
        ('[[tokens]]\nsha256 = "abc"\nrole = "admin"\n', "tokens"),
        (f'[[tokens]]\nsha256 = "{"a" * 64}"\nrole = "king"\n', "tokens"),
        (f'[[tokens]]\nsha256 = "{"a" * 64}"\nrole = "admin"\nname = "x"\n', "tokens"),
        ('[credentials.hub]\nuser = "x"\n', "credentials"),
        ("port = \n", "configuration"),
        ("\xff", "configuration"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(file, text, named):
    with pytest.raises(ConfigurationError, match=named):
        load(file(text))


@pytest.mark.parametrize(("name", "value"), [("PORT", "x"), ("TOKENS", "{"), ("WORKERS", "1000")])
def test_what_is_wrong_in_the_environment_is_named(monkeypatch, name, value):
    monkeypatch.setenv(f"BLOCKGATE_{name}", value)
    with pytest.raises(ConfigurationError, match=name.lower()):
        load()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.toml does not exist"):
        load(tmp_path / "none.toml")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def test_secrets_are_not_shown(monkeypatch):
    made = load(
        None,
        credentials={
            "hub": {
                "hosts": ["docker.io"],
                "username": "u",
                "password": "hunter2",
                "identity_token": "hunter3",
            }
        },
        database_url="postgresql+psycopg://user:hunter4@db/blockgate",
    )
    for shown in (
        repr(made),
        str(made),
        repr(made.credentials),
        f"{made.model_dump()}",
        made.model_dump_json(),
    ):
        assert "hunter" not in shown
    assert made.credentials["hub"].password.get_secret_value() == "hunter2"
    assert made.catalog_url == "postgresql+psycopg://user:hunter4@db/blockgate"
    monkeypatch.setenv("BLOCKGATE_CREDENTIALS", '{"hub": {"password": "hunter5", "x": "hunter6"}}')
    with pytest.raises(ConfigurationError) as error:
        load()
    assert "hunter" not in error.value.detail


def test_the_catalog_is_sqlite_in_the_data_folder_by_default(tmp_path):
    assert load(None, data_dir=tmp_path).catalog_url == f"sqlite:///{tmp_path}/catalog.sqlite"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_needs_no_tokens(host):
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "host.example", "127.evil.example", ""])
def test_listening_elsewhere_needs_tokens_or_a_word(host):
    with pytest.raises(ConfigurationError, match="without tokens"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, tokens=(TOKEN,)))
    check_exposure(Settings(host=host, allow_anonymous=True))


def test_clients_find_the_gateway_and_their_token_in_the_environment(monkeypatch):
    assert (gateway_url(), gateway_token()) == ("http://127.0.0.1:8080", None)
    monkeypatch.setenv("BLOCKGATE_URL", "http://gateway:1")
    monkeypatch.setenv("BLOCKGATE_TOKEN", "secret")
    assert (gateway_url(), gateway_token()) == ("http://gateway:1", "secret")
