"""Credentials over the API: in, used, never out."""

from __future__ import annotations

import pytest

from tests.support.inprocess import TOKENS, bearer, running, token_entries

SECRET = "hunter2-secret"
BODY = {"hosts": ["registry.internal:5000", "Docker.IO"], "username": "me", "password": SECRET}
URL = "/v1/credentials"


async def test_they_are_stored_replaced_listed_and_removed_and_never_shown(gateway):
    answers = [await gateway.client.put(f"{URL}/team", json=BODY)]
    shown = {"name": "team", "hosts": ["registry.internal:5000", "docker.io"]}
    assert (answers[0].status_code, answers[0].json()) == (201, shown)
    answers.append(await gateway.client.put(f"{URL}/team", json=BODY))
    assert answers[1].status_code == 200
    answers.append(
        await gateway.client.put(f"{URL}/a", json={"hosts": ["ghcr.io"], "identity_token": SECRET})
    )
    answers.append(await gateway.client.get(URL))
    assert answers[-1].json() == {"credentials": [{"name": "a", "hosts": ["ghcr.io"]}, shown]}
    answers.append(await gateway.client.get(f"{URL}/team"))
    assert answers[-1].status_code == 405
    answers.append(await gateway.client.delete(f"{URL}/team"))
    assert answers[-1].status_code == 204
    answers.append(await gateway.client.delete(f"{URL}/team"))
    assert (answers[-1].status_code, answers[-1].json()["code"]) == (404, "credentials_not_found")
    assert not [answer.text for answer in answers if SECRET in answer.text]


@pytest.mark.parametrize(
    "change",
    [
        {"hosts": []},
        {"hosts": ["a/b"]},
        {"hosts": ["https://registry.internal"]},
        {"hosts": ["name"]},
        {"hosts": ["oci:"]},
        {"hosts": ["h:99999"]},
        {"username": ""},
        {"username": "a:b"},
        {"password": None},
        {"password": "hunter2-secret" * 1000},
        {"identity_token": SECRET},
        {"unknown": SECRET},
        {"password": [SECRET]},
    ],
)
async def test_what_makes_no_sense_is_refused_without_being_repeated(gateway, change):
    answer = await gateway.client.put(f"{URL}/team", json={**BODY, **change})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert SECRET not in answer.text
    assert (await gateway.client.get(URL)).json() == {"credentials": []}


async def test_a_body_that_is_no_json_is_not_repeated(gateway):
    for body in (f'{{"password": "{SECRET}"', f'"{SECRET}"', f'["{SECRET}"]'):
        answer = await gateway.client.put(
            f"{URL}/team", content=body, headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert SECRET not in answer.text


async def test_a_name_of_the_configuration_is_not_shadowed(tmp_path, images):
    configured = {"team": {"hosts": ["h:5"], "username": "me", "password": "x"}}
    async with running(tmp_path, images, credentials=configured) as gateway:
        answer = await gateway.client.put(f"{URL}/team", json=BODY)
        assert (answer.status_code, "win" in answer.json()["detail"]) == (400, True)
        answer = await gateway.client.put(f"{URL}/-team", json=BODY)
        assert answer.status_code == 400


async def test_only_an_admin_may_see_or_change_them(tmp_path, images):
    async with running(tmp_path, images, tokens=token_entries(**TOKENS)) as gateway:
        for role, status in (("node", 403), ("metrics", 403), ("admin", 201)):
            gateway.client.headers.update(bearer(TOKENS[role]))
            assert (await gateway.client.put(f"{URL}/team", json=BODY)).status_code == status
            assert (await gateway.client.get(URL)).status_code == (200 if role == "admin" else 403)
