from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.registry.challenge import Challenge, find_challenge, parse_challenges

BEARER = 'Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:a/b:pull,push"'
BEARER_PARAMETERS = {
    "realm": "https://auth.example.com/token",
    "service": "registry.example.com",
    "scope": "repository:a/b:pull,push",
}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([BEARER], [Challenge("bearer", BEARER_PARAMETERS)]),
        (['basic realm="r"'], [Challenge("basic", {"realm": "r"})]),
        (["BASIC Realm=r"], [Challenge("basic", {"realm": "r"})]),
        (
            [f'Basic realm="x", {BEARER}'],
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", BEARER_PARAMETERS)],
        ),
        (
            [f'{BEARER}, Basic realm="x"'],
            [Challenge("bearer", BEARER_PARAMETERS), Challenge("basic", {"realm": "x"})],
        ),
        (
            [BEARER, 'Basic realm="x"'],
            [Challenge("bearer", BEARER_PARAMETERS), Challenge("basic", {"realm": "x"})],
        ),
        (["Negotiate"], [Challenge("negotiate")]),
        (["Negotiate YWJj=="], [Challenge("negotiate", {}, "YWJj==")]),
        (["Negotiate, Basic realm=x"], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (
            ["Negotiate YWJj==, Basic realm=x"],
            [Challenge("negotiate", {}, "YWJj=="), Challenge("basic", {"realm": "x"})],
        ),
        (['Basic realm="a\\"b\\\\c"'], [Challenge("basic", {"realm": 'a"b\\c'})]),
        (['Bearer realm = "x" ,  service = y'], [Challenge("bearer", {"realm": "x", "service": "y"})]),
        (["Basic realm=first, realm=second"], [Challenge("basic", {"realm": "first"})]),
        ([",, ,Basic realm=x,,"], [Challenge("basic", {"realm": "x"})]),
        (['Bearer realm=""'], [Challenge("bearer", {"realm": ""})]),
        ([""], []),
        ([], []),
    ],
)
def test_challenges_are_told_apart_from_parameters(headers, expected):
    assert parse_challenges(headers) == expected


def test_what_cannot_be_read_does_not_hide_what_can():
    challenges = parse_challenges(["Odd ???, Basic realm=x", 'Bearer realm="never ends'])
    assert find_challenge(challenges, "basic") == Challenge("basic", {"realm": "x"})
    assert find_challenge(challenges, "digest") is None


value = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
name = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
challenge = st.builds(Challenge, name, st.dictionaries(name, value, min_size=1, max_size=4))


@given(st.lists(challenge, min_size=1, max_size=5), st.booleans())
def test_written_challenges_read_back_in_one_header_or_several(challenges, together):
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    headers = [
        f"{item.scheme} " + ", ".join(f"{key}={quoted(text)}" for key, text in item.parameters.items())
        for item in challenges
    ]
    assert parse_challenges([", ".join(headers)] if together else headers) == challenges


@given(st.lists(st.text(alphabet='ab=", \\\t;é\x00Basic', max_size=200), max_size=3))
def test_any_header_is_read_without_an_error(headers):
    for found in parse_challenges(headers):
        assert found.scheme == found.scheme.lower()


def test_a_huge_header_is_cut_and_read_in_linear_time():
    assert len(parse_challenges(['a="' * 1_000_000])) <= 32
    assert len(parse_challenges(["x " * 1_000_000])) <= 32
