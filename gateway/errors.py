"""Everything that can go wrong in the gateway, as one tree.

A leaf says what happened (its ``code`` is stable and documented), whether trying again may help
(``retryable``), and in its text what is wrong, where, and what to do. No HTTP status is known here:
``api/problems.py`` holds the one table that maps branches to statuses.

::

    BlockgateError                     (blockgate.errors)
    ├── RangeNotSatisfiable            no byte of the device lies in the range
    ├── UsageError                     the caller asked for something that cannot be
    │   ├── InvalidRequest             a field, header or parameter is malformed
    │   ├── InvalidReference           not an image reference
    │   ├── PreconditionFailed         If-Match names other content
    │   ├── PayloadTooLarge            an upload exceeds the limit
    │   ├── HeadersTooLarge            more or longer header fields than accepted
    │   ├── ContentMismatch            an upload's digest is not the one in its URL
    │   ├── InvalidZinfo               a checkpoint table breaks a rule, or is of another layer
    │   ├── InvalidMetadata            an EROFS image breaks a rule
    │   ├── InvalidLayer               a layer is no gzip/tar, or a tar entry is refused by name
    │   ├── UnsupportedLayer           a compression that is not read here
    │   ├── PathNotAllowed             an OCI folder outside of the configured roots
    │   ├── Unauthenticated            a token is needed, or the one sent is not known
    │   ├── Forbidden                  the token's role does not allow this
    │   ├── MethodNotAllowed           the URL exists, this method on it does not
    │   └── ConfigurationError         a setting is wrong
    ├── MissingError
    │   ├── DeviceNotFound
    │   ├── ContentNotFound            no device has bytes of this entity tag
    │   ├── ArtifactNotFound
    │   ├── CredentialsNotFound
    │   └── RouteNotFound              no such URL
    ├── StateError
    │   ├── DeviceExists               the name is taken by another specification
    │   ├── DeviceNotReady             still being indexed
    │   ├── DeviceFailed               registration failed; its text says why
    │   ├── DeviceQuarantined          content contradicted its proof; nothing is served
    │   └── NewerFormat                a later version of blockgate wrote this
    ├── Overloaded                     too many bytes in flight; shed before touching upstream
    ├── UpstreamError                  a registry did not deliver
    │   ├── RegistryUnreachable        DNS, connect, reset, TLS
    │   ├── RegistryTimeout            deadline, or slower than the minimum rate
    │   ├── RegistryOverloaded         429 or 5xx, after retries
    │   ├── RegistryUnauthorized       401/403 after a refresh, or no usable credentials
    │   ├── RegistryProtocolError      an answer that no registry may give
    │   │   ├── RangeIgnored           200 for a range
    │   │   ├── WrongRange             206 for other bytes than asked for
    │   │   └── TruncatedBody          fewer bytes than announced
    │   ├── AddressRefused             a realm or redirect to an address that is not allowed
    │   ├── ImageNotFound              no such image
    │   ├── PlatformNotFound           the index has no manifest for the platform
    │   ├── InvalidManifest            a manifest or configuration that cannot be understood
    │   └── BlobNotFound               the layer is gone from the registry
    ├── IntegrityError                 bytes arrived that are not what was promised
    │   ├── ManifestMismatch           digest of a manifest or configuration
    │   ├── BlobMismatch               digest or length of a whole blob
    │   ├── DiffIdMismatch             digest of the decompressed layer
    │   ├── CorruptStream              gzip: bad block, CRC-32, ISIZE, truncated
    │   ├── SpanMismatch               digest or length of a span
    │   └── ChainMismatch              a span's tail is not the next checkpoint's window
    └── StorageError                   the data folder, a limit of this machine or the database failed; nothing is concluded
        ├── IndexAbsent                a layer has no index here
        ├── IndexDamaged               a copy of an index is not what the pass wrote; it is dropped and made again
        ├── IndexBeingMade             a read needs an index that is being made again
        ├── ArtifactDamaged            a file of the data folder does not have its digest
        ├── BuildFailed                the process that builds metadata ended with an error
        └── LeaseLost                  another replica does this work by now
"""

from __future__ import annotations

from blockgate.errors import BlockgateError, RangeNotSatisfiable, leaves  # noqa: F401 - handed on


class UsageError(BlockgateError):
    code = "invalid_request"


class InvalidRequest(UsageError):
    code = "invalid_request"


class InvalidReference(UsageError):
    code = "invalid_reference"


class PreconditionFailed(UsageError):
    code = "precondition_failed"


class PayloadTooLarge(UsageError):
    code = "payload_too_large"


class HeadersTooLarge(UsageError):
    code = "headers_too_large"


class ContentMismatch(UsageError):
    code = "digest_mismatch"


class InvalidZinfo(UsageError):
    code = "invalid_zinfo"


class InvalidMetadata(UsageError):
    code = "invalid_metadata"


class InvalidLayer(UsageError):
    code = "invalid_layer"


class UnsupportedLayer(UsageError):
    code = "unsupported_layer"


class PathNotAllowed(UsageError):
    code = "path_not_allowed"


class Unauthenticated(UsageError):
    code = "unauthenticated"


class Forbidden(UsageError):
    code = "forbidden"


class MethodNotAllowed(UsageError):
    code = "method_not_allowed"


class ConfigurationError(UsageError):
    code = "configuration"


class MissingError(BlockgateError):
    code = "not_found"


class DeviceNotFound(MissingError):
    code = "device_not_found"


class ContentNotFound(MissingError):
    code = "content_not_found"


class ArtifactNotFound(MissingError):
    code = "artifact_not_found"


class CredentialsNotFound(MissingError):
    code = "credentials_not_found"


class RouteNotFound(MissingError):
    code = "route_not_found"


class StateError(BlockgateError):
    code = "state"


class DeviceExists(StateError):
    code = "device_exists"


class DeviceNotReady(StateError):
    code = "device_not_ready"
    retryable = True


class DeviceFailed(StateError):
    code = "device_failed"


class DeviceQuarantined(StateError):
    code = "device_quarantined"


class NewerFormat(StateError):
    code = "newer_format"


class Overloaded(BlockgateError):
    code = "overloaded"
    retryable = True


class UpstreamError(BlockgateError):
    code = "upstream"


class RegistryUnreachable(UpstreamError):
    code = "registry_unreachable"
    retryable = True


class RegistryTimeout(UpstreamError):
    code = "registry_timeout"
    retryable = True


class RegistryOverloaded(UpstreamError):
    code = "registry_overloaded"
    retryable = True


class RegistryUnauthorized(UpstreamError):
    code = "registry_unauthorized"


class RegistryProtocolError(UpstreamError):
    code = "registry_protocol"


class RangeIgnored(RegistryProtocolError):
    code = "registry_range_ignored"


class WrongRange(RegistryProtocolError):
    code = "registry_wrong_range"
    retryable = True


class TruncatedBody(RegistryProtocolError):
    code = "registry_truncated"
    retryable = True


class AddressRefused(UpstreamError):
    code = "address_refused"


class ImageNotFound(UpstreamError):
    code = "image_not_found"


class PlatformNotFound(UpstreamError):
    code = "platform_not_found"


class InvalidManifest(UpstreamError):
    code = "invalid_manifest"


class BlobNotFound(UpstreamError):
    code = "blob_not_found"


class IntegrityError(BlockgateError):
    code = "integrity"


class ManifestMismatch(IntegrityError):
    code = "manifest_digest_mismatch"


class BlobMismatch(IntegrityError):
    code = "blob_digest_mismatch"


class DiffIdMismatch(IntegrityError):
    code = "diff_id_mismatch"


class CorruptStream(IntegrityError):
    code = "corrupt_stream"


class SpanMismatch(IntegrityError):
    code = "span_mismatch"


class ChainMismatch(IntegrityError):
    code = "chain_mismatch"


class StorageError(BlockgateError):
    code = "storage"
    retryable = True


class IndexAbsent(StorageError):
    code = "index_absent"


class IndexDamaged(StorageError):
    code = "index_damaged"


class IndexBeingMade(StorageError):
    code = "index_being_made"


class ArtifactDamaged(StorageError):
    code = "artifact_damaged"


class BuildFailed(StorageError):
    code = "metadata_build"


class LeaseLost(StorageError):
    code = "lease_lost"
