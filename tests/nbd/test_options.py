from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.errors import InvalidOption
from nbd_client.mount import Via, subtype
from nbd_client.options import (
    MountOptions,
    ResolvedImage,
    credentials_name,
    device_name,
    parse_options,
    pinned,
    registry_of,
    specification,
)


def test_the_options_of_mount_erofs_are_understood():
    parsed = parse_options(
        "ro,oci.layer=2,oci.platform=linux/arm64,oci.insecure,oci.tarindex=/a b,oci.zinfo=/z,noatime"
    )
    assert parsed == MountOptions(
        layer=2, platform="linux/arm64", insecure=True, local_meta="/a b", zinfo="/z", kernel=("noatime",)
    )
    assert parsed.oci
    assert not parse_options("ro,noexec").oci


@pytest.mark.parametrize(
    "text",
    [
        "oci.nonsense=1",
        "oci.blob=",
        "oci.blob",
        "oci.layer=-1",
        "oci.layer=x",
        "oci.layer=1,oci.blob=sha256:00",
        "oci.layer=1,oci.layer=2",
        "oci.local_meta=a,oci.tarindex=b",
        "oci.insecure=maybe",
        "oci.username=me",
        "oci.password=me",
        "oci.username=me,oci.password=",
        "rw",
        "suid",
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text):
    with pytest.raises(InvalidOption) as caught:
        parse_options(text)
    assert text.split(",")[-1].partition("=")[0].replace("tarindex", "local_meta") in str(
        caught.value
    ) or "oci" in str(caught.value)


def test_a_password_is_understood_and_never_repeated():
    parsed = parse_options("oci.username=me,oci.password=hunter2=,oci.layer=0")
    assert (parsed.username, parsed.password) == ("me", "hunter2=")
    assert "hunter2" not in repr(parsed)
    with pytest.raises(InvalidOption) as caught:
        parse_options("oci.password=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "host"),
    [
        ("python:3.12", "docker.io"),
        ("team/app", "docker.io"),
        ("docker.io/library/python", "docker.io"),
        ("Registry.internal/a:1", "registry.internal"),
        ("localhost/a", "localhost"),
        ("127.0.0.1:5000/a/b@sha256:00", "127.0.0.1:5000"),
        ("[::1]:5000/x", "[::1]:5000"),
    ],
)
def test_the_registry_of_a_reference_is_the_gateways_reading_of_it(image, host):
    assert registry_of(image) == host
    with pytest.raises(InvalidOption, match="folder"):
        registry_of("oci:/srv/x")


def test_credentials_are_named_after_host_and_user_alone():
    assert credentials_name("h:5", "me") == credentials_name("h:5", "me")
    names = {credentials_name(*pair) for pair in (("h:5", "me"), ("h:5", "you"), ("h", "me"), ("h:5m", "e"))}
    assert len(names) == 4


def test_the_registration_says_only_what_was_asked_for():
    assert specification("a/b:1", MountOptions(), None, None) == {"source": {"image": "a/b:1"}}
    options = parse_options("oci.blob=sha256:00,oci.platform=linux/amd64,oci.insecure=yes")
    assert specification("a", options, "sha256:11", "sha256:22") == {
        "source": {"image": "a", "platform": "linux/amd64", "insecure": True},
        "layer": {"digest": "sha256:00"},
        "metadata": "sha256:11",
        "zinfo": "sha256:22",
    }


D, BASE, TOP = (f"sha256:{digit * 64}" for digit in "abc")
IMAGE = ResolvedImage(f"h:5/a@{D}", D, "linux/amd64", (BASE, TOP))


def named(
    image: ResolvedImage = IMAGE, text: str = "", metadata: str | None = None, reference: str = "h:5/a"
):
    return device_name(pinned(specification(reference, parse_options(text), metadata, None), image), image)


def test_a_devices_name_is_the_images_digest_and_what_else_decides_about_its_bytes():
    assert named().startswith(f"sha256-{'a' * 64}-")
    assert named() == named(reference="h:5/a:tag") == named(text="oci.insecure")
    ways = ["oci.layer=0", "oci.layer=1", ""]
    names = [named(text=text) for text in ways] + [
        named(metadata=D),
        named(replace(IMAGE, platform="linux/arm64")),
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,127}", name) for name in names)
    assert len(named(replace(IMAGE, digest="sha512:" + "a" * 128))) <= 128


def test_a_layer_is_the_same_by_number_and_by_digest():
    assert named(text="oci.layer=1") == named(text=f"oci.blob={TOP}") == named(text=f"oci.blob={TOP[7:]}")
    wanted = pinned(specification("h:5/a:tag", parse_options("oci.layer=1,oci.insecure"), None, None), IMAGE)
    assert wanted == {"source": {"image": f"h:5/a@{D}", "insecure": True}, "layer": {"digest": TOP}}


def test_a_layer_that_is_erofs_itself_is_mounted_as_it_is():
    image = replace(IMAGE, native=frozenset({TOP}))

    def wanted(text: str, image: ResolvedImage = image, metadata: str | None = None):
        body = pinned(specification("a", parse_options(text), metadata), image)
        return body.get("layout"), body.get("layer")

    assert wanted("oci.layer=1") == ("raw", {"digest": TOP})
    assert wanted("oci.layer=1", metadata=D) == wanted("oci.layer=1", IMAGE) == (None, {"digest": TOP})
    assert wanted("oci.layer=0") == (None, {"digest": BASE})
    assert wanted("") == (None, None)
    assert wanted("", replace(image, layers=(TOP,))) == ("raw", {"digest": TOP})


@pytest.mark.parametrize(
    ("kind", "via", "way"),
    [
        ("erofs", Via.auto, Via.auto),
        ("erofs", Via.fuse, Via.fuse),
        ("erofs.nbd", Via.auto, Via.kernel),
        ("erofs.fuse", Via.fuse, Via.fuse),
        ("erofs.local", Via.auto, None),
        ("ext4", Via.auto, None),
        ("erofs.nbd", Via.fuse, None),
    ],
)
def test_the_types_of_mount_erofs_say_how_to_mount(kind, via, way):
    if way is None:
        with pytest.raises(InvalidOption, match=f"-t {kind}"):
            subtype(kind, via)
    else:
        assert subtype(kind, via) is way


@pytest.mark.parametrize("text", ["oci.layer=2", f"oci.blob={D}"])
def test_a_layer_that_the_image_does_not_have_is_refused(text):
    with pytest.raises(InvalidOption, match="oci"):
        named(text=text)


@given(st.text(max_size=60))
def test_any_text_is_options_or_an_invalid_option(text):
    for candidate in (text, "oci." + text):
        try:
            parse_options(candidate)
        except InvalidOption:
            continue
