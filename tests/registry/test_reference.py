"""Image references: every form that users type, and no other."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidReference
from gateway.registry.reference import Reference, parse_reference

D = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "canonical", "api_host"),
    [
        ("python", "docker.io/library/python:latest", "registry-1.docker.io"),
        ("python:3.12", "docker.io/library/python:3.12", "registry-1.docker.io"),
        ("team/app", "docker.io/team/app:latest", "registry-1.docker.io"),
        ("docker.io/python", "docker.io/library/python:latest", "registry-1.docker.io"),
        ("index.docker.io/library/python", "docker.io/library/python:latest", "registry-1.docker.io"),
        ("docker.io/library/python:3.12", "docker.io/library/python:3.12", "registry-1.docker.io"),
        (f"python@{D}", f"docker.io/library/python@{D}", "registry-1.docker.io"),
        (f"python:3.12@{D}", f"docker.io/library/python:3.12@{D}", "registry-1.docker.io"),
        ("localhost/x", "localhost/x:latest", "localhost"),
        ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000"),
        (f"127.0.0.1:5000/a/b@{D}", f"127.0.0.1:5000/a/b@{D}", "127.0.0.1:5000"),
        ("GHCR.io/Team/App".replace("T", "t").replace("A", "a"), "ghcr.io/team/app:latest", "ghcr.io"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000"),
        ("[2001:DB8:0::1]/x:y", "[2001:db8::1]/x:y", "[2001:db8::1]"),
        ("example.com:08080/x", "example.com:8080/x:latest", "example.com:8080"),
        ("a__b/c-d.e--f:V1_2.3-4", "docker.io/a__b/c-d.e--f:V1_2.3-4", "registry-1.docker.io"),
    ],
)
def test_references_have_one_canonical_form(text, canonical, api_host):
    reference = parse_reference(text)
    assert str(reference) == canonical
    assert reference.api_host == api_host
    assert not reference.is_folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:dir", Reference(None, "dir")),
        ("oci:/srv/images/base:1.0", Reference(None, "/srv/images/base", "1.0")),
        ("oci:/srv/a:b/c", Reference(None, "/srv/a:b/c")),
        ("oci:/srv/with space:x", Reference(None, "/srv/with space", "x")),
        (f"oci:/srv/x@{D}", Reference(None, "/srv/x", None, D)),
        (f"oci:/srv/x:t@{D}", Reference(None, "/srv/x", "t", D)),
    ],
)
def test_folders_are_references_without_a_registry(text, expected):
    assert parse_reference(text) == expected
    assert parse_reference(text).is_folder
    with pytest.raises(InvalidReference, match="folder"):
        _ = parse_reference(text).api_host


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "empty"),
        ("https://ghcr.io/x/y", "URL"),
        ("Python", "component"),
        ("team/App", "component"),
        ("ghcr.io/", "no repository"),
        ("ghcr.io/x:", "tag"),
        ("x:-bad", "tag"),
        ("x:" + "t" * 129, "tag"),
        ("x@sha256:abc", "digest"),
        ("x@sha256:" + "AB" * 32, "digest"),
        ("x@md5:" + "ab" * 16, "digest"),
        ("x@", "digest"),
        ("a//b", "component"),
        ("../etc", "not a"),
        ("a/../b", "component"),
        ("-x.io/a", "host"),
        ("exa mple.com/a", "host"),
        ("example.com:0/a", "port"),
        ("example.com:70000/a", "port"),
        ("example.com:\u0661/a", "port"),
        ("[::1/x", "IPv6"),
        ("[fe80::1%eth0]/x", "IPv6|scope"),
        ("[1.2.3.4]/x", "IPv6"),
        ("x" * 300, "characters"),
        ("x" * 5000, "characters"),
        ("oci:", "folder"),
        ("oci::tag", "folder"),
        ("oci:a\0b", "NUL"),
        ("a\nb", "component|control"),
        ("user:pass@host/x", "digest"),
    ],
)
def test_a_wrong_reference_says_what_is_wrong(text, wrong):
    with pytest.raises(InvalidReference, match=wrong):
        parse_reference(text)


component = st.from_regex(r"[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
registry_host = st.one_of(
    st.sampled_from(["docker.io", "localhost", "ghcr.io", "127.0.0.1", "[::1]", "[2001:db8::5]"]),
    st.from_regex(r"[a-z0-9]{1,10}\.[a-z]{2,5}", fullmatch=True),
)
port = st.one_of(st.none(), st.integers(1, 65535))
tag = st.one_of(st.none(), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True))
digest = st.one_of(st.none(), st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True))


@given(registry_host, port, st.lists(component, min_size=1, max_size=4), tag, digest)
def test_a_canonical_text_parses_to_the_same_value(host, number, components, a_tag, a_digest):
    text = f"{host}{f':{number}' if number else ''}/{'/'.join(components)}"
    text += f":{a_tag}" if a_tag else ""
    text += f"@{a_digest}" if a_digest else ""
    reference = parse_reference(text)
    assert parse_reference(str(reference)) == reference
    assert reference.tag == (a_tag or (None if a_digest else "latest"))
    assert reference.digest == a_digest
    assert reference.wanted == (a_digest or a_tag or "latest")
    assert reference.pinned(D).wanted == D


@given(st.one_of(st.text(max_size=60), st.text(alphabet="ab:/@.[]-_0 oci", max_size=40)))
def test_any_text_is_a_reference_or_an_invalid_reference(text):
    with contextlib.suppress(InvalidReference):
        reference = parse_reference(text)
        assert parse_reference(str(reference)) == reference
