from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_client.errors import InvalidOption
from nbd_client.gateway import device_name
from nbd_client.options import MountOptions, parse_options, specification


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


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(InvalidOption) as caught:
        parse_options("oci.password=hunter2")
    assert "hunter2" not in str(caught.value)


def test_the_registration_says_only_what_was_asked_for():
    assert specification("a/b:1", MountOptions(), None, None) == {"source": {"image": "a/b:1"}}
    options = parse_options("oci.blob=sha256:00,oci.platform=linux/amd64,oci.insecure=yes")
    assert specification("a", options, "sha256:11", "sha256:22") == {
        "source": {"image": "a", "platform": "linux/amd64", "insecure": True},
        "layer": {"digest": "sha256:00"},
        "metadata": "sha256:11",
        "zinfo": "sha256:22",
    }


def test_the_same_question_has_the_same_name_and_another_has_another():
    one = specification("a", MountOptions(layer=1), None, None)
    assert device_name(one) == device_name(dict(reversed(one.items())))
    assert device_name(one) != device_name(specification("a", MountOptions(layer=2), None, None))
    assert len(device_name(one)) <= 128


@given(st.text(max_size=60))
def test_any_text_is_options_or_an_invalid_option(text):
    for candidate in (text, "oci." + text):
        try:
            parse_options(candidate)
        except InvalidOption:
            continue
