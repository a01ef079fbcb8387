"""Everything that can go wrong on a node, as one tree.

A leaf says what happened (its ``code`` is stable and documented), whether trying again may help
(``retryable``), and in its text what is wrong, where, and what to do. The one table that turns errors
into NBD error numbers is :func:`nbd_client.server.errno_of`.

::

    BlockgateError                     (blockgate.errors)
    ├── RangeNotSatisfiable            a read outside of the device
    ├── UsageError                     the caller asked for something that cannot be
    │   ├── InvalidUrl                 not a URL that can be served
    │   └── InvalidOption              an option or address that makes no sense
    ├── ProtocolError                  NBD: the other side broke a rule
    │   └── ClientProtocolError        ... and it was the client
    ├── SourceError                    the URL did not deliver
    │   ├── SourceUnreachable          DNS, connect, reset, TLS
    │   ├── SourceTimeout              no whole answer before the deadline
    │   ├── SourceOverloaded           408, 429 or 5xx
    │   ├── SourceRefused              any other status: asking again cannot help
    │   ├── SourceChanged              other content under the same URL
    │   ├── SourceProtocolError        an answer that no HTTP server may give
    │   ├── RangeIgnored               200 for a range
    │   ├── WrongRange                 206 for other bytes than asked for
    │   └── TruncatedBody              fewer bytes than announced
    ├── GatewayError                   a device of the gateway shows another image
    ├── ServerStopped                  the server is going down
    ├── KernelError                    the kernel's NBD driver, sysfs or mount said no
    │   ├── KernelUnsupported          no driver, no privilege
    │   ├── DeviceBusy                 somebody holds the device open
    │   ├── DeviceUnknown              not attached by this agent
    │   └── MountFailed                mount or umount
    ├── AgentError                     the agent cannot be reached or started
    ├── ToolMissing                    a program that is needed is not installed
    └── RecordInvalid                  a recovery record cannot be understood
"""

from __future__ import annotations

from blockgate.errors import BlockgateError, RangeNotSatisfiable, leaves  # noqa: F401 - handed on


class UsageError(BlockgateError):
    code = "usage"


class InvalidUrl(UsageError):
    code = "invalid_url"


class InvalidOption(UsageError):
    code = "invalid_option"


class ProtocolError(BlockgateError):
    code = "nbd_protocol"


class ClientProtocolError(ProtocolError):
    code = "nbd_client_protocol"


class SourceError(BlockgateError):
    code = "source"


class SourceUnreachable(SourceError):
    code = "source_unreachable"
    retryable = True


class SourceTimeout(SourceError):
    code = "source_timeout"
    retryable = True


class SourceOverloaded(SourceError):
    code = "source_overloaded"
    retryable = True


class SourceRefused(SourceError):
    code = "source_refused"


class SourceChanged(SourceError):
    code = "source_changed"


class SourceProtocolError(SourceError):
    code = "source_protocol"


class RangeIgnored(SourceError):
    code = "source_range_ignored"


class WrongRange(SourceError):
    code = "source_wrong_range"


class TruncatedBody(SourceError):
    """``received`` bytes of the announced body arrived and are good."""

    code = "source_truncated"
    retryable = True

    def __init__(self, detail: str, *, received: int) -> None:
        super().__init__(detail)
        self.received = received


class GatewayError(BlockgateError):
    code = "gateway"


class ServerStopped(BlockgateError):
    code = "server_stopped"


class KernelError(BlockgateError):
    code = "kernel"


class KernelUnsupported(KernelError):
    code = "kernel_unsupported"


class DeviceBusy(KernelError):
    code = "device_busy"
    retryable = True


class DeviceUnknown(KernelError):
    code = "device_unknown"


class MountFailed(KernelError):
    code = "mount_failed"


class AgentError(BlockgateError):
    code = "agent"


class ToolMissing(BlockgateError):
    code = "tool_missing"


class RecordInvalid(BlockgateError):
    code = "record_invalid"
