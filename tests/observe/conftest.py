"""Gateways for the tests of what is seen of them."""

import pytest

from tests.support.inprocess import make_layout, running


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The folder of the images' OCI layout."""
    return make_layout(tmp_path_factory.mktemp("oci") / "images").folder


@pytest.fixture
async def gateway(tmp_path, images):
    async with running(tmp_path, images, span_size=65536) as gateway:
        yield gateway
