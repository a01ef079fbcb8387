"""Which faults may pass, and when to try again. PURE.

==========  =======================================================================  ==========================
fault       examples                                                                 what is done
==========  =======================================================================  ==========================
passing     a registry that is down, 429, 5xx; a full disk, EIO, EMFILE; a           tried again for ever
            database that does not answer
doubtful    401, 403, a digest that does not match (a bit that flipped on its way    tried a few times, then
            looks the same as a wrong manifest), a defect of this program            the device is ``failed``
final       no such image, a layer that is no gzip, a reference that is none         ``failed`` at once
==========  =======================================================================  ==========================
"""

from __future__ import annotations

from enum import Enum

from gateway import errors

DOUBTFUL_ATTEMPTS = 5
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 15.0


class Fault(Enum):
    """How a fault is to be taken."""

    PASSING = "passing"
    DOUBTFUL = "doubtful"
    FINAL = "final"


# The first class of an error's ancestry that stands here decides; where none does, ``retryable`` does.
_FAULTS: dict[type[BaseException], Fault] = {
    # What the gateway itself could not do need not be the disk's fault: building the metadata may crash each time.
    errors.BuildFailed: Fault.DOUBTFUL,
    errors.RegistryUnauthorized: Fault.DOUBTFUL,
    errors.BlobNotFound: Fault.DOUBTFUL,
    errors.AddressRefused: Fault.DOUBTFUL,
    errors.RegistryProtocolError: Fault.DOUBTFUL,
    errors.InvalidManifest: Fault.DOUBTFUL,
    errors.ManifestMismatch: Fault.DOUBTFUL,
    errors.BlobMismatch: Fault.DOUBTFUL,
    # Said of bytes that have their blob's digest, so the image itself is so.
    errors.CorruptStream: Fault.FINAL,
    errors.DiffIdMismatch: Fault.FINAL,
}


def fault_of(error: BaseException) -> Fault:
    """How an error of a registration is to be taken."""
    if not isinstance(error, errors.BlockgateError):
        return Fault.DOUBTFUL  # a defect: it may depend on the moment
    if error.retryable:
        return _FAULTS.get(type(error), Fault.PASSING) if not _is_protocol(error) else Fault.PASSING
    for ancestor in type(error).__mro__:
        if ancestor in _FAULTS:
            return _FAULTS[ancestor]
    return Fault.FINAL


def _is_protocol(error: errors.BlockgateError) -> bool:
    return isinstance(error, errors.RegistryProtocolError)


def wait_seconds(error: BaseException, attempt: int, doubts: int, jitter: float) -> float | None:
    """Seconds until the next attempt, or ``None`` when there is to be none.

    ``attempt`` counts the attempts made so far, ``doubts`` those of them that ended in a doubtful fault; ``jitter`` is a
    number in [0, 1), so that many registrations that failed together do not return together. What the other side asked for
    (Retry-After) is a minimum.
    """
    fault = fault_of(error)
    if fault is Fault.FINAL or (fault is Fault.DOUBTFUL and doubts >= DOUBTFUL_ATTEMPTS):
        return None
    step: float = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(attempt - 1, 16))
    asked = error.retry_after_seconds if isinstance(error, errors.BlockgateError) else None
    return max(step * (0.75 + 0.25 * jitter), asked or 0.0)
