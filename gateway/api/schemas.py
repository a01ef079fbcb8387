"""What the API sends: the shapes of the contract."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from blockgate.names import content_path, data_path
from gateway.api.problems import public_detail
from gateway.recipes.records import DeviceRecord, DeviceSummary, Failure, Progress
from gateway.recipes.segments import BLOCK_BYTES, SegmentKind
from gateway.recipes.spec import Layout
from gateway.recipes.states import State, Verification

Health = Literal["ok", "degraded"]


class ImageView(BaseModel):
    """The image that a device was made of."""

    reference: str
    digest: str
    platform: str


class SegmentView(BaseModel):
    """A run of device bytes that comes from one place."""

    kind: SegmentKind
    offset: int
    length: int
    digest: str | None


class FailureView(BaseModel):
    """Why a device is not as it should be."""

    code: str
    detail: str


class ProgressView(BaseModel):
    """How far indexing is."""

    phase: str = Field(description="`waiting` while a fault is waited out: `error` says which")
    done: int = Field(description="Bytes")
    total: int = Field(description="Bytes; 0 while unknown")
    error: FailureView | None = Field(None, description="What the last attempt met")
    attempt: int = Field(0, description="Attempts that ended in an error")
    retry_at: datetime | None = Field(None, description="When the next attempt begins")


class ContentsView(BaseModel):
    """What a file system holds."""

    files: int
    directories: int
    symlinks: int
    specials: int
    bytes: int


class DeviceSummaryView(BaseModel):
    """A device as lists show it."""

    name: str
    state: State
    health: Health = Field(
        description="`degraded`: some of its bytes could not be had when they were last asked for"
    )
    verification: Verification
    layout: Layout
    size: int | None
    block_size: int = Field(description="What a block device of it counts in; `size` need not be a multiple")
    etag: str | None
    data_url: str = Field(
        description="Its bytes: by their entity tag once the device is ready, by its name before"
    )
    image: ImageView | None
    progress: ProgressView | None
    error: FailureView | None = Field(description="Why it failed, is quarantined or degraded")
    created_at: datetime


class DeviceView(DeviceSummaryView):
    """A device."""

    segments: list[SegmentView]


class DeviceDetail(DeviceView):
    """A device with what is known of its image and its contents."""

    contents: ContentsView | None
    image_config: dict[str, Any] | None = Field(
        description="The OCI image configuration's `config` object: entrypoint, environment, working folder, user"
    )


class DeviceList(BaseModel):
    """Devices by name, as many as were asked for."""

    devices: list[DeviceSummaryView]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one")


class TierView(BaseModel):
    """One cache tier of the worker that answered (disk: of all workers)."""

    spans: int | None
    used_bytes: int
    budget_bytes: int
    evicted: int


class CacheView(BaseModel):
    """Occupancy of the caches."""

    memory: TierView
    disk: TierView
    disk_bypassed: bool = Field(description="Writing to disk pauses after an error; reads go on")
    disk_errors: dict[str, int] = Field(
        description="Reads and writes of the disk cache that failed, by errno"
    )


class CacheDropped(BaseModel):
    """What dropping the caches freed."""

    freed_bytes: int


class CredentialView(BaseModel):
    """Stored credentials, without them."""

    name: str
    hosts: list[str] = Field(description="The registries that they may be sent to")


class CredentialList(BaseModel):
    """All that are stored."""

    credentials: list[CredentialView]


class ResolvedLayer(BaseModel):
    """A layer's descriptor."""

    digest: str
    size: int = Field(description="Bytes of the blob")
    media_type: str


class ResolvedImage(BaseModel):
    """What an image reference means now."""

    reference: str = Field(description="What was asked for, in full")
    pinned: str = Field(description="The same image by its digest, without the tag")
    digest: str = Field(description="Of the manifest for the platform")
    platform: str
    layers: list[ResolvedLayer] = Field(description="The base first")


class ArtifactView(BaseModel):
    """A stored artifact."""

    digest: str
    size: int


class CheckView(BaseModel):
    """One readiness check."""

    name: str
    ok: bool
    detail: str


class HealthView(BaseModel):
    """Health, with its checks when asked for."""

    status: Literal["ok", "draining", "failing"]
    checks: list[CheckView] = []


def summary(device: DeviceSummary, base_url: str, trouble: Failure | None) -> DeviceSummaryView:
    """A device as lists show it; ``trouble`` is why bytes of it cannot be had now."""
    image = None
    if device.manifest is not None:
        image = ImageView(reference=device.image, digest=device.manifest, platform=device.platform)
    return DeviceSummaryView(
        name=device.name,
        state=device.state,
        verification=device.verification,
        layout=device.layout,
        size=device.size,
        etag=device.etag,
        image=image,
        created_at=device.created_at,
        **_condition(device.name, device.etag, device.progress, device.failure, base_url, trouble),
    )


def view(record: DeviceRecord, base_url: str, trouble: Failure | None = None) -> DeviceView:
    """A device as the API shows it."""
    return DeviceView(**_fields(record, base_url, trouble))


def detail(record: DeviceRecord, base_url: str, trouble: Failure | None, config: str | None) -> DeviceDetail:
    """A device with its details."""
    contents = ContentsView(**record.contents) if record.contents else None
    return DeviceDetail(**_fields(record, base_url, trouble), contents=contents, image_config=_config(config))


def progress_view(progress: Progress | None) -> ProgressView | None:
    """How far a device is."""
    if progress is None:
        return None
    retry_at = None if progress.retry_at is None else datetime.fromtimestamp(progress.retry_at, UTC)
    return ProgressView(
        phase=progress.phase,
        done=progress.done,
        total=progress.total,
        error=failure_view(progress.error),
        attempt=progress.attempt,
        retry_at=retry_at,
    )


def _fields(record: DeviceRecord, base_url: str, trouble: Failure | None) -> dict[str, Any]:
    recipe = record.recipe
    image = None
    if recipe is not None:
        image = ImageView(reference=recipe.reference, digest=recipe.manifest, platform=recipe.platform)
    return {
        "name": record.name,
        "state": record.state,
        "verification": record.verification,
        "layout": record.spec.layout,
        "size": recipe.size if recipe else None,
        "etag": record.etag,
        "image": image,
        "segments": [
            SegmentView(kind=s.kind, offset=s.offset, length=s.length, digest=s.digest)
            for s in (recipe.segments if recipe else ())
        ],
        "created_at": record.created_at,
        **_condition(record.name, record.etag, record.progress, record.failure, base_url, trouble),
    }


def _condition(
    name: str,
    etag: str | None,
    progress: Progress | None,
    failure: Failure | None,
    base_url: str,
    trouble: Failure | None,
) -> dict[str, Any]:
    """What is computed alike for summaries and whole records."""
    path = data_path(name) if etag is None else content_path(etag)
    error = failure or trouble
    return {
        "health": "ok" if trouble is None else "degraded",
        "block_size": BLOCK_BYTES,
        "data_url": f"{base_url.rstrip('/')}{path}",
        "progress": progress_view(progress),
        "error": failure_view(error),
    }


def failure_view(failure: Failure | None) -> FailureView | None:
    """Why a device is not as it should be, in a text for clients."""
    if failure is None:
        return None
    return FailureView(code=failure.code, detail=public_detail(failure.code, failure.detail))


def _config(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    config = parsed.get("config") if isinstance(parsed, dict) else None
    return _plain(config) if isinstance(config, dict) else {}


def _plain(value: Any) -> Any:
    """JSON that can be encoded: a lone surrogate, which JSON can write and UTF-8 cannot, becomes a replacement character."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_plain(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value
