"""A blob in a registry as a ``Blob``: closed ranges at random, or one long transfer in order.

Theory of operation. A ``RegistryBlob`` owns one ``Place`` per endpoint: where that host keeps the blob. It owns no
connection and no task. Readers of spans call ``read``, any number at once; registration calls ``stream``, once.

A read is one closed range, repeated by the ``Retrier``. A stream has two states, in a transfer and between two: one
that breaks, or is slower than ``MinimumRate``, ends, and the next begins by a range where it ended. It gives up after
``stream_attempts`` transfers in a row that brought next to nothing; it has no deadline.

What must never happen: bytes of another range than was asked for reach the caller (status, Content-Range, encoding
and length are checked before the first byte and after the last); a whole blob is downloaded to answer a range; a body
that trickles holds a reader for ever; a signed URL gets into a text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from blockgate.ranges import range_header
from blockgate.reader import Bytes, check_bounds
from gateway.errors import (
    BlobNotFound,
    RangeIgnored,
    RegistryTimeout,
    TruncatedBody,
    UpstreamError,
    WrongRange,
)
from gateway.registry.endpoint import Endpoint, Place
from gateway.registry.partial import check_partial, check_whole
from gateway.registry.retry import Retrier
from gateway.registry.source import Descriptor
from gateway.registry.transport import Answer

# A resumed transfer that brought at least this much starts with a clean record.
_PROGRESS_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MinimumRate:
    """What is too slow: fewer than ``bytes_per_second`` on average over ``window_seconds`` of waiting."""

    bytes_per_second: float = 16 * 1024.0
    window_seconds: float = 8.0

    def seconds_for(self, length: int) -> float:
        """The longest that a body of ``length`` bytes may take."""
        return self.window_seconds + length / self.bytes_per_second


class RegistryBlob:
    """Reads ``descriptor`` of ``repository`` from ``endpoints`` (mirrors in order, the origin last).

    The bytes are what the registry sends: lengths and ranges are checked here, digests by whoever reads.
    A host that answers a range with the whole blob is left at once and not asked for ranges for a minute;
    where that is the origin, ``RangeIgnored`` is raised, and not retried: such a registry cannot serve a
    device.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        repository: str,
        descriptor: Descriptor,
        *,
        retrier: Retrier,
        minimum_rate: MinimumRate,
    ) -> None:
        self._endpoints, self._repository, self._descriptor = tuple(endpoints), repository, descriptor
        self._retrier, self._rate = retrier, minimum_rate
        self._places = {endpoint: Place() for endpoint in self._endpoints}
        self._path = f"blobs/{descriptor.digest}"

    @property
    def size(self) -> int:
        """Length in bytes, as the manifest says."""
        return self._descriptor.size

    async def read(self, offset: int, length: int) -> Bytes:
        """Exactly ``length`` bytes, by one closed range request (repeated if it fails).

        Raises ``UpstreamError`` leaves; ``BlobNotFound`` where the origin no longer has the blob.
        """
        check_bounds(offset, length, self.size)
        if length == 0:
            return b""

        async def attempt(endpoint: Endpoint) -> memoryview:
            return await self._read_range(endpoint, offset, offset + length)

        return await self._retrier.run(self._ranged(), attempt)

    async def stream(self, start: int = 0) -> AsyncIterator[Bytes]:
        """The bytes from ``start`` to the end, in pieces of at most 256 KiB.

        A broken or too slow transfer is resumed by a range where it ended. Raises the last error when
        resuming brings no progress any more.
        """
        check_bounds(start, 0, self.size)
        position, failures = start, 0
        policy = self._retrier.policy
        while position < self.size:
            begun = position
            try:
                host, answer = await self._open_transfer(position)
                try:
                    async for piece in _paced(answer, self._rate):
                        if position + len(piece) > self.size:
                            raise WrongRange(
                                f"{self._where(host)}: more than the {self.size} bytes announced"
                            )
                        position += len(piece)
                        self._retrier.observer.bytes_received(host, len(piece))
                        yield piece
                finally:
                    await answer.aclose()
                if position < self.size:
                    raise TruncatedBody(f"{self._where(host)}: ended at byte {position} of {self.size}")
            except UpstreamError as error:
                if position - begun >= _PROGRESS_BYTES:
                    failures = 0
                failures += 1
                if not error.retryable or failures >= policy.stream_attempts:
                    raise
                self._retrier.observer.retried(self._endpoints[-1].host, error.code)
                wait = policy.backoff_seconds(failures, self._retrier.rng)
                await self._retrier.sleep(max(wait, error.retry_after_seconds or 0.0))

    async def aclose(self) -> None:
        """Forget where the blob was found. Connections belong to the source."""
        self._places.clear()

    def _ranged(self) -> list[Endpoint]:
        """The endpoints to ask for a range. Raises ``RangeIgnored`` where the origin does not serve them."""
        origin = self._endpoints[-1]
        if origin.ignores_ranges:
            raise RangeIgnored(
                f"{self._where(origin.host)}: the registry ignores ranges (it sent the whole blob)"
            )
        return [endpoint for endpoint in self._endpoints if not endpoint.ignores_ranges]

    async def _read_range(self, endpoint: Endpoint, start: int, stop: int) -> memoryview:
        where = self._where(endpoint.host)
        try:
            async with asyncio.timeout(self._rate.seconds_for(stop - start)) as limit:
                answer = await self._ask(endpoint, start, stop)
                try:
                    body = await _fill(answer, stop - start, where)
                finally:
                    self._retrier.observer.bytes_received(endpoint.host, answer.received_bytes)
                    await answer.aclose()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise RegistryTimeout(f"{where}: {stop - start} bytes came too slowly") from error
        return body

    async def _ask(self, endpoint: Endpoint, start: int, stop: int) -> Answer:
        """The accepted answer to a range request, its body unread."""
        answer = await endpoint.get(
            self._path,
            self._repository,
            {"Range": range_header(start, stop)},
            missing=BlobNotFound,
            place=self._places.get(endpoint),
        )
        try:
            check_partial(
                answer.status, answer.headers, start, stop, size=self.size, where=self._where(endpoint.host)
            )
        except UpstreamError as error:
            await answer.aclose()
            if isinstance(error, RangeIgnored):
                endpoint.remember_ignored_range()
            raise
        return answer

    async def _open_transfer(self, position: int) -> tuple[str, Answer]:
        """The host that serves the rest of the blob from ``position``, and its answer, the body unread."""

        async def whole(endpoint: Endpoint) -> tuple[str, Answer]:
            place = self._places.get(endpoint)
            answer = await endpoint.get(self._path, self._repository, {}, missing=BlobNotFound, place=place)
            try:
                check_whole(answer.status, answer.headers, self.size, self._where(endpoint.host))
            except UpstreamError:
                await answer.aclose()
                raise
            return endpoint.host, answer

        async def rest(endpoint: Endpoint) -> tuple[str, Answer]:
            return endpoint.host, await self._ask(endpoint, position, self.size)

        if position == 0:
            return await self._retrier.once(self._endpoints, whole)
        return await self._retrier.once(self._ranged(), rest)

    def _where(self, host: str) -> str:
        return f"{host}/{self._repository}: {self._path}"


async def _fill(answer: Answer, length: int, where: str) -> memoryview:
    """The body, which must have exactly ``length`` bytes."""
    buffer = memoryview(bytearray(length))
    filled = 0
    async for piece in answer.pieces():
        if filled + len(piece) > length:
            raise WrongRange(f"{where}: more than the {length} bytes announced")
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
    if filled < length:
        raise TruncatedBody(f"{where}: {filled} of {length} bytes arrived")
    return buffer.toreadonly()


async def _paced(answer: Answer, rate: MinimumRate) -> AsyncIterator[bytes]:
    """The body's pieces. Raises ``RegistryTimeout`` when a window of waiting brings too little.

    Only waiting counts: a consumer that takes its time does not make the registry slow.
    """
    needed = rate.bytes_per_second * rate.window_seconds
    waited, received = 0.0, 0
    time = asyncio.get_running_loop().time
    pieces = answer.pieces()
    try:
        while True:
            before = time()
            try:
                async with asyncio.timeout(max(rate.window_seconds - waited, 0.0)) as limit:
                    piece = await anext(pieces, None)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise RegistryTimeout(
                    f"{answer.host}: {received} bytes in {rate.window_seconds:.1f} s, which is too slow"
                ) from error
            if piece is None:
                return
            waited += time() - before
            received += len(piece)
            if received >= needed:
                waited, received = 0.0, 0
            yield piece
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
