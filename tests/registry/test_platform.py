from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.registry.platform import Platform, choose, parse_platform


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/riscv64", "linux/riscv64"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_spellings_come_to_one_form(text, canonical):
    assert str(parse_platform(text)) == canonical


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/amd64/\n"]
)
def test_what_is_no_platform_is_an_invalid_request(text):
    with pytest.raises(InvalidRequest, match="os/arch"):
        parse_platform(text)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/arm64", ["linux/amd64", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/amd64", "linux/arm64"], 1),
        ("linux/arm64/v9", ["linux/arm64"], 0),
        ("linux/arm64/v9.2", ["linux/arm64", "linux/arm64/v9", "linux/arm64/v9.4"], 1),
        ("linux/arm64", ["linux/arm64/v9"], None),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64", ["linux/amd64/v2"], None),
        ("linux/amd64", ["windows/amd64", "linux/amd64", "linux/amd64"], 1),
        ("linux/s390x", ["linux/amd64"], None),
        ("linux/amd64", [], None),
    ],
)
def test_the_nearest_variant_that_runs_is_taken(wanted, offered, chosen):
    assert choose(parse_platform(wanted), [parse_platform(text) for text in offered]) == chosen


platforms = st.builds(
    parse_platform,
    st.sampled_from(
        [
            "linux/amd64",
            "linux/amd64/v2",
            "linux/amd64/v3",
            "linux/arm/v5",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64",
            "linux/arm64/v9",
            "windows/amd64",
            "linux/ppc64le",
            "linux/amd64/odd",
        ]
    ),
)


@given(platforms, st.lists(st.one_of(st.none(), platforms), max_size=8))
def test_a_choice_is_always_of_the_same_machine_and_an_exact_offer_always_wins(wanted, offered):
    index = choose(wanted, offered)
    if wanted in offered:
        assert index == offered.index(wanted)
    if index is not None:
        chosen = offered[index]
        assert isinstance(chosen, Platform)
        assert (chosen.os, chosen.architecture) == (wanted.os, wanted.architecture)


@given(st.text(max_size=40))
def test_parsing_is_stable(text):
    with contextlib.suppress(InvalidRequest):
        platform = parse_platform(text)
        assert parse_platform(str(platform)) == platform
