"""Registries as image sources: what they share, and one view per device's wishes.

Theory of operation. ``Registries`` is one object per process. It owns the transport's connections, a breaker per
scheme and host, and an endpoint (with its tokens and its cache of URLs) per base URL, registry and name of
credentials; all live as long as it does. ``RegistrySource`` is one device's view of it: cheap, and without a state of
its own. ``ImageSources`` adds folders; registration, the image API and the readers of spans come in through it.

A reference is resolved in documents: root, perhaps an index, manifest, configuration. Each is one run of the
``Retrier`` over mirrors and origin.

What must never happen: a document is used before its digest was verified, or read past its limit; a device's
credentials go to another device's endpoint, to a mirror, or to storage that a registry redirects to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import httpx

from blockgate.reader import Blob
from gateway.errors import AddressRefused, BlobNotFound, ConfigurationError, ImageNotFound, InvalidManifest
from gateway.registry.auth import Authenticator
from gateway.registry.blob import MinimumRate, RegistryBlob
from gateway.registry.breaker import Breaker
from gateway.registry.credentials import CredentialStore
from gateway.registry.endpoint import Endpoint
from gateway.registry.layout import LayoutSource
from gateway.registry.manifest import (
    ACCEPT,
    CONFIG_LIMIT_BYTES,
    MANIFEST_LIMIT_BYTES,
    digest_of,
    parse_manifest,
    verify_digest,
)
from gateway.registry.partial import check_encoding
from gateway.registry.platform import parse_platform
from gateway.registry.reference import Reference, is_digest
from gateway.registry.resolve import resolve_image
from gateway.registry.retry import Retrier
from gateway.registry.source import Descriptor, Image, ImageSource
from gateway.registry.transport import Transport, origin_of


class Registries:
    """Every registry that the gateway talks to; one object per process.

    ``insecure_hosts`` (``host[:port]``) are spoken to over plain http. ``mirrors`` maps a registry
    (``docker.io``) to base URLs, asked in order before the registry itself. All share the ``retrier``, so that its
    budget bounds what this process adds to the world's trouble; its clock and observer are the breakers' too.
    """

    def __init__(
        self,
        *,
        store: CredentialStore,
        transport: Transport,
        retrier: Retrier,
        minimum_rate: MinimumRate,
        insecure_hosts: Iterable[str],
        mirrors: Mapping[str, Sequence[str]],
    ) -> None:
        self._store = store
        self._transport = transport
        self._insecure_hosts = frozenset(host.lower() for host in insecure_hosts)
        self._mirrors = {host: tuple(_base_url(text) for text in texts) for host, texts in mirrors.items()}
        self._observer, self._clock = retrier.observer, retrier.clock
        self.minimum_rate = minimum_rate
        self.retrier = retrier
        self._breakers: dict[str, Breaker] = {}
        self._endpoints: dict[tuple[str, str, str | None], Endpoint] = {}

    def source(self, *, insecure: bool = False, credentials: str | None = None) -> RegistrySource:
        """A source that speaks plain http if ``insecure``, with the named credentials."""
        return RegistrySource(self, insecure=insecure, credentials=credentials)

    def endpoints(
        self, reference: Reference, *, insecure: bool, credentials: str | None
    ) -> tuple[Endpoint, ...]:
        """Who serves the reference's repository: its mirrors in order, then its registry.

        Raises ``InvalidReference`` for a folder.
        """
        registry = reference.registry or ""
        scheme = "http" if insecure or registry in self._insecure_hosts else "https"
        origin = httpx.URL(f"{scheme}://{reference.api_host}")
        mirrors = [self._endpoint(url, url.netloc.decode(), None) for url in self._mirrors.get(registry, ())]
        return (*mirrors, self._endpoint(origin, registry, credentials))

    def _endpoint(self, base: httpx.URL, registry: str, credentials: str | None) -> Endpoint:
        key = (str(base), registry, credentials)
        if key not in self._endpoints:
            breaker = self._breaker(f"{base.scheme}://{base.netloc.decode()}", registry)
            authenticator = Authenticator(
                origin_of(base),
                registry,
                transport=self._transport,
                store=self._store,
                name=credentials,
                clock=self._clock,
            )
            self._endpoints[key] = Endpoint(
                base,
                registry,
                transport=self._transport,
                authenticator=authenticator,
                breaker=breaker,
                clock=self._clock,
            )
        return self._endpoints[key]

    def _breaker(self, origin: str, registry: str) -> Breaker:
        """One per scheme and host: paths below a host (of mirrors) fail and come back together."""
        if origin not in self._breakers:
            breaker = Breaker(registry, clock=self._clock, observer=self._observer)
            self._breakers[origin] = breaker
            self._observer.breaker_made(registry, breaker)
        return self._breakers[origin]

    async def aclose(self) -> None:
        await self._transport.aclose()


class RegistrySource:
    """An ``ImageSource`` over ``registries``; cheap, made per device."""

    def __init__(self, registries: Registries, *, insecure: bool, credentials: str | None) -> None:
        self._registries, self._insecure, self._credentials = registries, insecure, credentials

    async def resolve(self, reference: Reference, platform: str) -> Image:
        """Find the image for ``platform``, with every document's digest verified.

        Raises ``ImageNotFound``, ``PlatformNotFound``, ``InvalidManifest``, ``ManifestMismatch``, and the
        ``UpstreamError`` leaves of an exchange that failed.
        """
        wanted = parse_platform(platform)
        documents = _Documents(self._registries.retrier, self._endpoints(reference), reference)
        body, media_type, digest = await documents.root()
        root = parse_manifest(body, media_type, str(reference))
        return await resolve_image(documents, root, digest, reference=str(reference), wanted=wanted)

    async def open_blob(self, reference: Reference, descriptor: Descriptor) -> Blob:
        """A reader of one blob of the reference's repository. Asks nothing of the network."""
        return RegistryBlob(
            self._endpoints(reference),
            reference.repository,
            descriptor,
            retrier=self._registries.retrier,
            minimum_rate=self._registries.minimum_rate,
        )

    async def aclose(self) -> None:
        """Nothing to do: connections belong to ``Registries``."""

    def _endpoints(self, reference: Reference) -> tuple[Endpoint, ...]:
        return self._registries.endpoints(reference, insecure=self._insecure, credentials=self._credentials)


class ImageSources:
    """The one entry: registries and OCI layout folders behind one interface. Owns both."""

    def __init__(self, registries: Registries, layouts: LayoutSource) -> None:
        self._registries, self._layouts = registries, layouts

    def open_source(
        self, reference: Reference, *, insecure: bool = False, credentials: str | None = None
    ) -> ImageSource:
        """The source for ``reference``; ``insecure`` and ``credentials`` mean nothing to a folder."""
        if reference.is_folder:
            return self._layouts
        return self._registries.source(insecure=insecure, credentials=credentials)

    async def aclose(self) -> None:
        await self._layouts.aclose()
        await self._registries.aclose()


class _Documents:
    """The small documents of one repository, bounded and verified."""

    def __init__(self, retrier: Retrier, endpoints: Sequence[Endpoint], reference: Reference) -> None:
        self._retrier, self._endpoints, self._reference = retrier, endpoints, reference

    async def root(self) -> tuple[bytes, str, str]:
        """What the reference names: bytes, media type and digest."""
        wanted = self._reference.wanted

        async def attempt(endpoint: Endpoint) -> tuple[bytes, str, str]:
            body, media_type, claimed = await self._fetch_manifest(endpoint, wanted)
            digest = self._reference.digest or (claimed if is_digest(claimed) else digest_of(body))
            verify_digest(body, digest, str(self._reference))
            return body, media_type, digest

        return await self._retrier.run(self._endpoints, attempt)

    async def manifest(self, descriptor: Descriptor) -> tuple[bytes, str]:

        async def attempt(endpoint: Endpoint) -> tuple[bytes, str]:
            body, media_type, _ = await self._fetch_manifest(endpoint, descriptor.digest)
            verify_digest(body, descriptor.digest, str(self._reference))
            return body, media_type

        return await self._retrier.run(self._endpoints, attempt)

    async def config(self, descriptor: Descriptor) -> bytes:

        async def attempt(endpoint: Endpoint) -> bytes:
            path = f"blobs/{descriptor.digest}"
            body, _, _ = await self._fetch(endpoint, path, {}, CONFIG_LIMIT_BYTES, missing=BlobNotFound)
            verify_digest(body, descriptor.digest, str(self._reference))
            return body

        return await self._retrier.run(self._endpoints, attempt)

    async def _fetch_manifest(self, endpoint: Endpoint, wanted: str) -> tuple[bytes, str, str]:
        return await self._fetch(
            endpoint,
            f"manifests/{wanted}",
            {"Accept": ACCEPT},
            MANIFEST_LIMIT_BYTES,
            missing=ImageNotFound,
        )

    async def _fetch(
        self,
        endpoint: Endpoint,
        path: str,
        headers: dict[str, str],
        limit_bytes: int,
        *,
        missing: type[ImageNotFound | BlobNotFound],
    ) -> tuple[bytes, str, str]:
        """One document: its bytes, its media type and the digest that the registry claims for it."""
        where = f"{endpoint.host}/{self._reference.repository}: {path}"
        answer = await endpoint.get(path, self._reference.repository, headers, missing=missing)
        try:
            check_encoding(answer.headers, where)
            body = await answer.body(limit_bytes)
        finally:
            self._retrier.observer.bytes_received(endpoint.host, answer.received_bytes)
            await answer.aclose()
        if body is None:
            raise InvalidManifest(f"{where}: longer than {limit_bytes} bytes")
        claimed = answer.headers.get("docker-content-digest", "")
        return body, answer.headers.get("content-type", ""), claimed


def _base_url(text: str) -> httpx.URL:
    """A mirror's base URL. Raises ``ConfigurationError``."""
    try:
        url = httpx.URL(text)
        if origin_of(url) and not url.userinfo and url.path == "/" and not url.query:
            return url
    except (httpx.InvalidURL, AddressRefused):
        pass
    raise ConfigurationError("a mirror is written http(s)://HOST[:PORT], without path, query or credentials")
