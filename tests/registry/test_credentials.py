from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.errors import ConfigurationError, RegistryUnauthorized
from gateway.registry.credentials import Credentials, CredentialStore, default_auth_files


def auth(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


@pytest.fixture
def store(tmp_path):
    """Makes a store over files with the given contents."""

    def make(*contents: object, **options) -> CredentialStore:
        files = []
        for number, content in enumerate(contents):
            file = tmp_path / f"{number}.json"
            file.write_text(content if isinstance(content, str) else json.dumps(content))
            files.append(file)
        return CredentialStore(files, **options)

    return make


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Installs a credential helper's script on the PATH."""

    def install(name: str, body: str) -> None:
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


def test_the_files_of_podman_and_docker_are_searched_in_this_order():
    environ = {
        "REGISTRY_AUTH_FILE": "/a.json",
        "XDG_RUNTIME_DIR": "/run/user/1",
        "DOCKER_CONFIG": "/d",
        "HOME": "/home/u",
    }
    assert default_auth_files(environ) == (
        Path("/a.json"),
        Path("/run/user/1/containers/auth.json"),
        Path("/home/u/.config/containers/auth.json"),
        Path("/d/config.json"),
    )
    assert default_auth_files({"HOME": "/h"})[-1] == Path("/h/.docker/config.json")
    assert default_auth_files({}) == ()


async def test_no_file_means_anonymous(tmp_path):
    assert await CredentialStore([tmp_path / "none.json"]).look_up("ghcr.io", "a/b") is None


@pytest.mark.parametrize("key", ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v2/"])
async def test_a_host_is_found_under_every_spelling_of_its_key(store, key):
    found = await store({"auths": {key: auth("me", "p:w")}}).look_up("ghcr.io", "a/b")
    assert found == Credentials("me", SecretStr("p:w"))
    assert found.basic() == "Basic " + base64.b64encode(b"me:p:w").decode()


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"])
async def test_docker_hub_has_many_names(store, key):
    found = await store({"auths": {key: auth("me", "pw")}}).look_up("docker.io", "library/python")
    assert found == Credentials("me", SecretStr("pw"))


async def test_another_host_s_or_port_s_credentials_are_not_used(store):
    made = store({"auths": {"ghcr.io": auth("me", "pw"), "localhost:5000": auth("me", "pw")}})
    for host in ("evil-ghcr.io", "ghcr.io.evil", "localhost", "localhost:5001"):
        assert await made.look_up(host, "a/b") is None


async def test_the_longest_namespace_wins(store):
    made = store(
        {
            "auths": {
                "q.io": auth("host", "1"),
                "q.io/team": auth("team", "2"),
                "q.io/team/app": auth("app", "3"),
            }
        }
    )
    for repository, username in [
        ("team/app", "app"),
        ("team/other", "team"),
        ("teams/x", "host"),
        ("x", "host"),
    ]:
        assert (await made.look_up("q.io", repository)).username == username


async def test_the_first_file_with_an_entry_wins(store):
    made = store(
        {"auths": {}}, {"auths": {"q.io": auth("second", "2")}}, {"auths": {"q.io": auth("third", "3")}}
    )
    assert (await made.look_up("q.io", "x")).username == "second"


async def test_identity_tokens_and_plain_fields_are_read(store):
    made = store(
        {
            "auths": {
                "a.io": {"auth": "", "identitytoken": "T"},
                "b.io": {"username": "u", "password": "p"},
                "c.io": {},
            }
        }
    )
    assert await made.look_up("a.io", "x") == Credentials(identity_token=SecretStr("T"))
    assert await made.look_up("b.io", "x") == Credentials("u", SecretStr("p"))
    assert await made.look_up("c.io", "x") is None


async def test_named_credentials_come_from_the_configuration_alone(store):
    mine = Credentials("svc", SecretStr("pw"))
    made = store({"auths": {"q.io": auth("file", "1")}}, named={"prod": mine})
    assert await made.look_up("q.io", "x", "prod") is mine
    with pytest.raises(ConfigurationError, match="'test'"):
        await made.look_up("q.io", "x", "test")


async def test_named_credentials_may_be_bound_to_registries(store):
    made = store(named={"prod": Credentials("svc", SecretStr("pw"), hosts=("q.io",))})
    assert (await made.look_up("q.io", "x", "prod")).username == "svc"
    with pytest.raises(ConfigurationError, match=r"not for evil\.io"):
        await made.look_up("evil.io", "x", "prod")


@pytest.mark.parametrize("content", ["{not json", '{"auths": {"q.io": {"auth": "c2VjcmV0"}}}'])
async def test_a_broken_file_is_named_without_its_content(store, content):
    with pytest.raises(ConfigurationError) as caught:
        await store(content).look_up("q.io", "x")
    assert "0.json" in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


async def test_a_helper_is_asked_through_its_standard_input(store, helper, tmp_path):
    helper("test", f'cat > {tmp_path}/asked; echo \'{{"ServerURL":"x","Username":"me","Secret":"pw"}}\'')
    made = store({"credHelpers": {"q.io": "test"}})
    assert await made.look_up("q.io", "x") == Credentials("me", SecretStr("pw"))
    assert (tmp_path / "asked").read_text() == "q.io"
    assert await made.look_up("other.io", "x") is None


async def test_a_store_for_all_hosts_and_identity_tokens_of_helpers(store, helper, tmp_path):
    helper("all", f'cat > {tmp_path}/asked; echo \'{{"Username":"<token>","Secret":"T"}}\'')
    assert await store({"credsStore": "all"}).look_up("docker.io", "x") == Credentials(
        identity_token=SecretStr("T")
    )
    assert (tmp_path / "asked").read_text() == "https://index.docker.io/v1/"


async def test_a_helper_that_knows_nothing_leaves_it_to_the_next_file(store, helper):
    helper("none", "cat > /dev/null; echo credentials not found in native keychain; exit 1")
    made = store({"credsStore": "none"}, {"auths": {"q.io": auth("me", "pw")}})
    assert (await made.look_up("q.io", "x")).username == "me"


@pytest.mark.parametrize("body", ["cat > /dev/null; echo S3cret; exit 1", "cat > /dev/null; echo S3cret"])
async def test_a_failing_helper_is_named_and_its_output_is_not(store, helper, body):
    helper("bad", body)
    with pytest.raises(ConfigurationError, match="docker-credential-bad") as caught:
        await store({"credsStore": "bad"}).look_up("q.io", "x")
    assert "S3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_hanging_helper_is_ended(store, helper):
    helper("slow", "exec sleep 60")
    with pytest.raises(RegistryUnauthorized, match="did not answer"):
        await store({"credsStore": "slow"}, helper_seconds=0.2).look_up("q.io", "x")


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "-x", "nowhere-to-be-found"])
async def test_a_helper_that_is_none_is_a_configuration_error(store, name):
    with pytest.raises(ConfigurationError):
        await store({"credsStore": name}).look_up("q.io", "x")


def test_no_secret_is_in_a_representation():
    credentials = Credentials("me", SecretStr("hunter2"), SecretStr("token9"))
    assert "hunter2" not in repr(credentials)
    assert "token9" not in repr(credentials)
