from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections.abc import AsyncIterator, Callable

import pytest

from blockgate.reader import Blob
from gateway.registry.blob import MinimumRate
from gateway.registry.client import Registries
from gateway.registry.credentials import CredentialStore
from gateway.registry.guard import AllowList
from gateway.registry.observe import RegistryObserver, SilentObserver
from gateway.registry.reference import Reference, parse_reference
from gateway.registry.retry import Retrier, RetryBudget, RetryPolicy
from gateway.registry.transport import Transport
from tests.support.faketime import FakeTime
from tests.support.faultregistry import FaultRegistry, StoredImage

MakeRegistries = Callable[..., Registries]


def build_registries(
    *,
    store: CredentialStore | None = None,
    allowed: tuple[str, ...] = (),
    transport: Transport | None = None,
    policy: RetryPolicy | None = None,
    minimum_rate: MinimumRate | None = None,
    observer: RegistryObserver | None = None,
    insecure_hosts: tuple[str, ...] = (),
    mirrors: dict[str, list[str]] | None = None,
    clock=time.monotonic,
    sleep=asyncio.sleep,
) -> Registries:
    """Registries of plain parts, each of which a test may replace."""
    return Registries(
        store=store or CredentialStore(),
        transport=transport or Transport(allowed=AllowList(allowed)),
        retrier=Retrier(
            policy or RetryPolicy(),
            budget=RetryBudget(clock=clock),
            observer=observer or SilentObserver(),
            rng=random.Random(1),
            clock=clock,
            sleep=sleep,
        ),
        minimum_rate=minimum_rate or MinimumRate(),
        insecure_hosts=insecure_hosts,
        mirrors=mirrors or {},
    )


@pytest.fixture(scope="session")
def layer() -> bytes:
    """A gzip layer of about 1.2 MB that does not compress further."""
    return gzip.compress(random.Random(7).randbytes(1_200_000), 1)


@pytest.fixture
async def registry() -> AsyncIterator[FaultRegistry]:
    async with FaultRegistry() as started:
        yield started


@pytest.fixture
def image(registry: FaultRegistry, layer: bytes) -> StoredImage:
    return registry.add_image("team/app", [layer])


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
async def make_registries(fake_time: FakeTime) -> AsyncIterator[MakeRegistries]:
    """Registries over plain http whose waits between attempts take no time. Storage on loopback is allowed."""
    made: list[Registries] = []

    def make(**options) -> Registries:
        defaults = {"allowed": ("127.0.0.1",), "clock": fake_time.clock, "sleep": fake_time.sleep}
        made.append(build_registries(**defaults | options))
        return made[-1]

    yield make
    for registries in made:
        await registries.aclose()


@pytest.fixture
def reference(registry: FaultRegistry, image: StoredImage) -> Reference:
    return parse_reference(f"{registry.host}/{image.repository}:{image.tag}")


@pytest.fixture
def open_layer(reference: Reference, image: StoredImage) -> Callable[[Registries], object]:
    """Opens the image's layer without asking for its manifest."""

    async def open_it(registries: Registries) -> Blob:
        from gateway.registry.source import Descriptor

        stored = image.layers[0]
        descriptor = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", stored.digest, stored.size)
        return await registries.source(insecure=True).open_blob(reference, descriptor)

    return open_it
