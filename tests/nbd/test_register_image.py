"""What ``mount IMAGE`` asks of a gateway before anything is mounted."""

from __future__ import annotations

import httpx
import pytest

import blockgate
from blockgate.calls import DeviceUnusable, GatewayRefused
from nbd_client.errors import InvalidOption
from nbd_client.options import parse_options
from nbd_client.registration import register_image
from tests.support import gzips
from tests.support.erofsimage import device_of
from tests.support.inprocess import make_layout, quiet_logs, served
from tests.support.layers import tar_of
from tests.support.ocilayout import Layer, digest_of, gzip_layer


@pytest.fixture
def layout(tmp_path):
    return make_layout(tmp_path / "images")


@pytest.fixture
def url(tmp_path, layout):
    quiet_logs()
    with served(tmp_path, layout.folder) as (url, _):
        yield url


def register(url: str, layout, tag: str, options: str = "") -> str:
    with blockgate.connect(url) as client:
        return register_image(
            f"oci:{layout.folder}:{tag}", parse_options(options), client, patience_seconds=60
        )


def test_one_image_under_two_tags_is_one_device_and_a_moved_tag_is_another(url, layout):
    other = tar_of({"etc/motd": b"new\n"})
    first = layout.add_image([gzip_layer(gzips.member(other), other)], tag="one")
    layout.tag("two", first)
    device = register(url, layout, "one")
    assert first["digest"].replace(":", "-") in device
    assert register(url, layout, "two") == register(url, layout, "one") == device
    layout.add_image([gzip_layer(gzips.member(other), other)], tag="one", config={"config": {"Cmd": ["/x"]}})
    assert register(url, layout, "one") != device
    assert register(url, layout, "two") == device
    assert httpx.head(device, trust_env=False).status_code == 200
    listed = httpx.get(f"{url}/v1/devices", trust_env=False).json()["devices"]
    assert [f"@{one['image']['digest']}" in one["image"]["reference"] for one in listed] == [True, True]


def test_options_that_change_bytes_make_devices_of_their_own(url, layout):
    whole, by_number = register(url, layout, "image"), register(url, layout, "image", "oci.layer=0")
    assert whole != by_number
    blob = httpx.post(
        f"{url}/v1/images/resolve", json={"image": f"oci:{layout.folder}:image"}, trust_env=False
    ).json()["layers"][0]["digest"]
    assert register(url, layout, "image", f"oci.blob={blob}") == by_number


def test_what_cannot_be_read_says_why_each_time(url, layout):
    for _ in range(2):
        with pytest.raises(DeviceUnusable, match=r"failed: .*zstd"):
            register(url, layout, "zstd")
    with pytest.raises(GatewayRefused, match="no such tag"):
        register(url, layout, "missing")
    with pytest.raises(InvalidOption, match="2 layers"):
        register(url, layout, "image", "oci.layer=2")


def test_an_image_whose_layer_is_erofs_is_served_as_it_is(url, layout):
    blob = device_of([tar_of({"etc/motd": b"hello\n"})])
    layout.add_image([Layer(blob, digest_of(blob), "application/vnd.erofs.layer.v1")], tag="native")
    device = register(url, layout, "native")
    assert httpx.get(device, trust_env=False).content[: len(blob)] == blob
