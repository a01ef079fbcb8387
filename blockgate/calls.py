"""What a client of the gateway's API decides: its errors, problems into errors, how long to wait for a device. PURE.

A call is a generator of steps: it yields what is to be done (:class:`Ask`, :class:`Blocking`, :class:`Pause`) and is sent
what came of it. ``blockgate.client`` runs the same generators with and without asyncio.

::

    BlockgateError
    └── GatewayClientError
        ├── GatewayRefused         the gateway answered with a problem, or what answered is no gateway
        ├── GatewayUnreachable     no gateway answers
        ├── GatewayWaits           the device waits for a fault to pass; the gateway goes on trying
        └── DeviceUnusable         the device failed, or is quarantined
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from blockgate.errors import BlockgateError
from blockgate.retry import parse_http_date, parse_retry_after

T = TypeVar("T")
Json = dict[str, Any]

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 0.5
_MAX_DETAIL = 2000


class GatewayClientError(BlockgateError):
    """Whatever a call can end in."""

    code = "gateway_client"


class GatewayRefused(GatewayClientError):
    """The gateway answered with a problem. ``problem`` is its code, empty where something else answered."""

    code = "gateway_refused"

    def __init__(
        self, detail: str, *, status: int, problem: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)
        self.status = status
        self.problem = problem


class GatewayUnreachable(GatewayClientError):
    """No gateway answers at the URL."""

    code = "gateway_unreachable"
    retryable = True


class GatewayWaits(GatewayClientError):
    """A device waits for a fault to pass for longer than the caller does. The gateway goes on trying."""

    code = "gateway_waits"
    retryable = True


class DeviceUnusable(GatewayClientError):
    """The device ended in a state in which nothing can be read. ``device`` is what the gateway shows of it."""

    code = "device_unusable"

    def __init__(self, detail: str, *, device: Json) -> None:
        super().__init__(detail)
        self.device = device


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway sent; names of ``fields`` in lower case."""

    status: int
    fields: Mapping[str, str]
    body: bytes

    @property
    def good(self) -> bool:
        """A success. A redirect is none: a gateway sends no client elsewhere."""
        return 200 <= self.status < 300  # noqa: PLR2004  RFC 9110 section 15.3


@dataclass(frozen=True, slots=True)
class Ask:
    """Step: send a request, be sent its ``Answer``. ``body`` is sent as JSON, ``file`` as it is."""

    method: str
    path: str
    body: object = None
    file: str | None = None
    query: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Blocking:
    """Step: call something that blocks, be sent what it returned."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: let time pass."""

    seconds: float


Steps = Generator[Ask | Blocking | Pause, Any, T]
Report = Callable[[str, int, int], None]
"""Takes the phase, and how many bytes of how many are done (0: not known)."""


def asked(ask: Ask) -> Steps[Json]:
    """Ask; the decoded object of a success, an empty one where there is no body. Raises ``GatewayRefused``."""
    answer: Answer = yield ask
    if not answer.good:
        raise refusal(answer)
    try:
        found = json.loads(answer.body or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise GatewayRefused(f"what answers {ask.path} is no gateway", status=answer.status)
    return found


def refusal(answer: Answer) -> GatewayRefused:
    """The error that an answer stands for."""
    wait = parse_retry_after(answer.fields.get("retry-after"), parse_http_date(answer.fields.get("date")))
    try:
        problem = json.loads(answer.body)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, LookupError, TypeError):
        text = f"the gateway answered {answer.status} without saying why; is it one?"
        return GatewayRefused(text, status=answer.status, retry_after_seconds=wait)
    error = GatewayRefused(
        f"{detail[:_MAX_DETAIL]} [{code}]", status=answer.status, problem=code, retry_after_seconds=wait
    )
    error.retryable = bool(problem.get("retryable"))
    return error


class Readiness:
    """How a device comes to be readable: feed it what the gateway shows, it says how long until the next look.

    ``patience_seconds`` bounds the time in which the gateway waits for a fault to pass. An attempt that comes no further
    than the ones before it is part of that time; one that does begins it anew. Indexing itself may take as long as it
    takes.
    """

    def __init__(self, patience_seconds: float, report: Report | None = None) -> None:
        self._patience_seconds = patience_seconds
        self._report = report
        self._waited_seconds: float | None = None  # None: no fault was met since the last progress
        self._fault = ""
        self._furthest: dict[str, int] = {}
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def pause_after(self, device: Json) -> float | None:
        """Seconds until the next look; None when the device is ready.

        Raises ``DeviceUnusable``, or ``GatewayWaits`` when patience is over.
        """
        state = device["state"]
        if state == "ready":
            return None
        if state != "indexing":
            text = f"device {device['name']} is {state}: {_shown(device.get('error'))}"
            raise DeviceUnusable(text, device=device)
        progress = device.get("progress") or {}
        phase, done = progress.get("phase") or "indexing", progress.get("done") or 0
        if phase == "waiting":
            self._fault = _shown(progress.get("error"))
            self._waited_seconds = self._waited_seconds or 0.0
            phase = f"waiting ({self._fault})"
        elif done > self._furthest.get(phase, 0):
            self._furthest[phase] = done
            self._waited_seconds = None
        if self._report is not None:
            self._report(phase, done, progress.get("total") or 0)
        if self._waited_seconds is not None:
            if self._waited_seconds >= self._patience_seconds:
                raise GatewayWaits(
                    f"device {device['name']} is not ready yet: {self._fault}; the gateway goes on trying: "
                    "ask again later, or see what it meets with: blockgate device show"
                )
            self._waited_seconds += self._pause_seconds
        pause, self._pause_seconds = self._pause_seconds, min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        return pause


def _shown(error: object) -> str:
    if isinstance(error, dict):
        return f"{error.get('detail')} [{error.get('code')}]"
    return str(error or "no explanation")
