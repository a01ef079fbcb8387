"""Challenges, tokens and their ends, against the fault registry."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from pydantic import SecretStr

from gateway.errors import (
    AddressRefused,
    ConfigurationError,
    RegistryOverloaded,
    RegistryProtocolError,
    RegistryUnauthorized,
)
from gateway.registry.credentials import Credentials, CredentialStore
from gateway.registry.reference import parse_reference
from gateway.registry.retry import RetryPolicy
from gateway.registry.stored import StoredCredentials
from tests.support import faultregistry as faults

MINE = Credentials("me", SecretStr("hunter2"))


def token_requests(request: faults.Request) -> bool:
    return request.path == "/token"


@pytest.fixture
def with_mine(make_registries):
    """Registries that know one pair of credentials by name; open the source with ``credentials="mine"``."""
    return make_registries(store=CredentialStore(named={"mine": MINE}))


async def read(registries, registry, *, credentials=None, repository="team/app") -> bytes:
    reference = parse_reference(f"{registry.host}/{repository}")
    source = registries.source(insecure=True, credentials=credentials)
    resolved = await source.resolve(reference, "linux/amd64")
    blob = await source.open_blob(reference, resolved.layers[0].descriptor)
    return bytes(await blob.read(0, 100))


async def test_a_token_is_fetched_once_and_used_for_every_request(registry, make_registries, image, layer):
    registry.scheme = "bearer"
    assert await read(make_registries(), registry) == layer[:100]
    assert registry.token_requests == 1
    (request,) = registry.matching("/token")
    assert request.query == {"service": "fault,registry", "scope": "repository:team/app:pull"}
    refused = [request for request in registry.matching("/v2/") if "authorization" not in request.headers]
    assert len(refused) == 1


@pytest.mark.parametrize("field", ["token", "access_token"])
@pytest.mark.parametrize("lifetime", [None, 300, 0])
async def test_tokens_come_under_two_names_and_with_or_without_a_lifetime(
    registry, make_registries, image, field, lifetime
):
    registry.scheme, registry.token_field, registry.token_lifetime_seconds = "bearer", field, lifetime
    assert await read(make_registries(), registry) == image.layers[0].content[:100]


async def test_a_token_is_renewed_before_it_expires_without_a_refused_request(
    registry, make_registries, open_layer, fake_time
):
    registry.scheme, registry.token_lifetime_seconds = "bearer", 60
    blob = await open_layer(make_registries())
    await blob.read(0, 10)
    fake_time.now += 56
    registry.expire_tokens()
    await blob.read(0, 10)
    assert registry.token_requests == 2
    assert registry.count("/blobs/") == 3


async def test_a_token_without_a_lifetime_lives_for_a_minute(
    registry, make_registries, open_layer, fake_time
):
    registry.scheme, registry.token_lifetime_seconds = "bearer", None
    blob = await open_layer(make_registries())
    await blob.read(0, 10)
    fake_time.now += 50
    await blob.read(0, 10)
    assert registry.token_requests == 1
    fake_time.now += 10
    await blob.read(0, 10)
    assert registry.token_requests == 2


@pytest.mark.parametrize("stale", ["bearer", "basic"])
async def test_many_reads_with_an_expired_token_renew_it_once(
    registry, make_registries, open_layer, layer, stale
):
    registry.scheme, registry.stale_token_scheme = "bearer", stale
    blob = await open_layer(make_registries())
    await blob.read(0, 10)
    registry.expire_tokens()
    reads = await asyncio.gather(*(blob.read(position, 50) for position in range(8)))
    assert [bytes(read) for read in reads] == [layer[position : position + 50] for position in range(8)]
    assert registry.token_requests == 2


async def test_credentials_go_to_the_token_server_as_basic(registry, with_mine, image, layer):
    registry.scheme, registry.credentials = "bearer", ("me", "hunter2")
    assert await read(with_mine, registry, credentials="mine") == layer[:100]
    (request,) = registry.matching("/token")
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"me:hunter2").decode()
    assert "hunter2" not in request.target


async def test_basic_is_answered_after_a_challenge_and_then_kept(registry, with_mine, image, layer):
    registry.scheme, registry.credentials = "basic", ("me", "hunter2")
    assert await read(with_mine, registry, credentials="mine") == layer[:100]
    assert [("authorization" in request.headers) for request in registry.requests] == [
        False,
        True,
        True,
        True,
    ]


async def test_an_identity_token_is_posted_for_an_access_token(registry, make_registries, image, layer):
    registry.scheme, registry.identity_token, registry.token_field = "bearer", "id;token&=", "access_token"
    registries = make_registries(
        store=CredentialStore(named={"id": Credentials(identity_token=SecretStr("id;token&="))})
    )
    assert await read(registries, registry, credentials="id") == layer[:100]
    (request,) = registry.matching("/token")
    assert request.method == "POST"
    assert b"grant_type=refresh_token" in request.body


async def test_credentials_come_from_docker_s_file(registry, make_registries, image, layer, tmp_path):
    registry.scheme, registry.credentials = "basic", ("me", "hunter2")
    entry = {"auth": base64.b64encode(b"me:hunter2").decode()}
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: entry}}))
    registries = make_registries(store=CredentialStore([tmp_path / "config.json"]))
    assert await read(registries, registry) == layer[:100]


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_wrong_or_missing_credentials_are_unauthorized_and_secret(registry, with_mine, image, scheme):
    registry.scheme, registry.credentials = scheme, ("me", "something else")
    for credentials, said in [("mine", "refused"), (None, "known")]:
        with pytest.raises(RegistryUnauthorized, match=said) as caught:
            await read(with_mine, registry, credentials=credentials)
        assert registry.host in str(caught.value)
        assert "hunter2" not in repr(caught.value.__cause__) + str(caught.value)
    assert len(registry.requests) <= 8


async def test_a_login_after_a_refusal_is_used(registry, make_registries, image, layer, tmp_path):
    registry.scheme, registry.credentials = "basic", ("me", "hunter2")
    file = tmp_path / "config.json"
    registries = make_registries(store=CredentialStore([file]))
    with pytest.raises(RegistryUnauthorized, match="log in"):
        await read(registries, registry)
    file.write_text(json.dumps({"auths": {registry.host: {"username": "me", "password": "hunter2"}}}))
    assert await read(registries, registry) == layer[:100]


async def test_a_fresh_token_that_is_refused_ends_it(registry, make_registries, open_layer):
    registry.scheme = "bearer"
    blob = await open_layer(make_registries())
    challenge = f'Bearer realm="http://{registry.host}/token",service="fault,registry"'
    registry.inject(faults.status(401, www_authenticate=challenge), times=None)
    with pytest.raises(RegistryUnauthorized, match="fresh"):
        await blob.read(0, 10)
    assert registry.count("/blobs/") == 2


async def test_a_challenge_that_is_not_understood_names_what_was_asked(registry, make_registries, open_layer):
    blob = await open_layer(make_registries())
    registry.inject(faults.status(401, www_authenticate="Negotiate"), times=None)
    with pytest.raises(RegistryUnauthorized, match="negotiate"):
        await blob.read(0, 10)


async def test_tokens_of_one_repository_are_not_used_for_another(registry, make_registries, image, layer):
    registry.scheme = "bearer"
    registry.add_image("team/other", [layer])
    registries = make_registries()
    await read(registries, registry)
    await read(registries, registry, repository="team/other")
    scopes = [request.query["scope"] for request in registry.matching("/token")]
    assert scopes == ["repository:team/app:pull", "repository:team/other:pull"]


@pytest.mark.parametrize(
    ("realm", "error"),
    [
        ("http://169.254.169.254/token", AddressRefused),
        ("http://[::1]:1/token", AddressRefused),
        ("http://2130706433/token", RegistryProtocolError),
        ("file:///etc/passwd", RegistryProtocolError),
        ("ftp://1.1.1.1/", AddressRefused),
        ("/token", RegistryProtocolError),
        ("", RegistryProtocolError),
        ("http://user:pass@1.1.1.1/", RegistryProtocolError),
        ("http://exa mple/", AddressRefused),
    ],
)
async def test_a_realm_that_may_not_be_asked_is_refused(registry, make_registries, open_layer, realm, error):
    registry.scheme, registry.realm = "bearer", realm
    blob = await open_layer(make_registries(allowed=()))
    with pytest.raises(error):
        await blob.read(0, 10)


async def test_a_realm_on_another_port_of_the_same_host_is_guarded_too(registry, make_registries, open_layer):
    registry.scheme, registry.realm = "bearer", f"http://{registry.storage_host}/token"
    blob = await open_layer(make_registries(allowed=()))
    with pytest.raises(AddressRefused):
        await blob.read(0, 10)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.status(503), RegistryOverloaded),
        (faults.status(302, location="http://1.1.1.1/"), RegistryProtocolError),
        (faults.oversize(1_000_000), RegistryProtocolError),
        (faults.oversize(3), RegistryProtocolError),
    ],
)
async def test_a_sick_token_server_is_named(registry, make_registries, open_layer, fault, error):
    registry.scheme = "bearer"
    registry.inject(fault, times=None, matching=token_requests)
    blob = await open_layer(make_registries(policy=RetryPolicy(attempts=1)))
    with pytest.raises(error, match="token server"):
        await blob.read(0, 10)


async def test_a_token_server_s_passing_fault_is_got_over(registry, make_registries, open_layer, layer):
    registry.scheme = "bearer"
    registry.inject(faults.status(503, retry_after="1"), times=2, matching=token_requests)
    blob = await open_layer(make_registries())
    assert bytes(await blob.read(0, 10)) == layer[:10]


async def test_a_cancelled_renewal_does_not_fail_the_others(registry, make_registries, open_layer, layer):
    registry.scheme = "bearer"
    registry.inject(faults.stall(), matching=token_requests)
    blob = await open_layer(make_registries())
    leader = asyncio.create_task(blob.read(0, 10))
    await registry.arrived("/token")
    follower = asyncio.create_task(blob.read(0, 20))
    leader.cancel()
    assert bytes(await follower) == layer[:20]
    with pytest.raises(asyncio.CancelledError):
        await leader


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_stored_credentials_that_are_changed_or_removed_open_nothing_any_more(
    registry, make_registries, image, layer, scheme, tmp_path
):
    registry.scheme, registry.credentials = scheme, ("me", "hunter2")
    stored = StoredCredentials(tmp_path / "credentials.json")
    registries = make_registries(store=CredentialStore(stored=stored))
    stored.put("theirs", MINE)
    assert await read(registries, registry, credentials="theirs") == layer[:100]
    stored.put("theirs", Credentials("me", SecretStr("wrong")))
    with pytest.raises(RegistryUnauthorized):
        await read(registries, registry, credentials="theirs")
    stored.put("theirs", MINE)
    assert await read(registries, registry, credentials="theirs") == layer[:100]
    stored.remove("theirs")
    with pytest.raises(ConfigurationError, match="theirs"):
        await read(registries, registry, credentials="theirs")
