"""Gateways for the API's tests."""

from __future__ import annotations

import pytest

from tests.support.inprocess import make_layout, quiet_logs, running


@pytest.fixture(scope="session", autouse=True)
def _logs():
    quiet_logs()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The folder of the images' OCI layout."""
    return make_layout(tmp_path_factory.mktemp("oci") / "images").folder


@pytest.fixture
async def gateway(tmp_path, images):
    async with running(tmp_path, images) as gateway:
        yield gateway
