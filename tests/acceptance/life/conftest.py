"""A registry that is whole at the beginning of each test, and a gateway of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import SETTINGS
from tests.support.threadedregistry import ThreadedRegistry


@pytest.fixture
def registry() -> Iterator[FaultRegistry]:
    with ThreadedRegistry() as registry:
        yield registry


@pytest.fixture
def gateway(tmp_path: Path, registry: FaultRegistry) -> Iterator[Gateway]:
    with Gateway(tmp_path / "gateway", settings=SETTINGS) as gateway:
        yield gateway
