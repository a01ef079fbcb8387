"""Catalogs and logs for tests of devices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.catalogs import catalog, database, open_catalog  # noqa: F401 - fixtures
from tests.support.inprocess import quiet_logs


@pytest.fixture(scope="session", autouse=True)
def _logs():
    quiet_logs()


@pytest.fixture(scope="module")
def executor():
    with ThreadPoolExecutor(4) as executor:
        yield executor
