"""A registry that is down refuses connections, and is found at its old address afterwards."""

import httpx
import pytest

from tests.support.outage import Outage
from tests.support.threadedregistry import ThreadedRegistry


def test_a_registry_that_was_down_answers_again_at_its_address() -> None:
    with (
        ThreadedRegistry() as registry,
        httpx.Client(base_url=f"http://{registry.host}", trust_env=False) as http,
    ):
        assert http.get("/v2/").status_code == 200
        with Outage(registry):
            for _ in range(2):
                with pytest.raises(httpx.TransportError):
                    http.get("/v2/")
        assert http.get("/v2/").status_code == 200
