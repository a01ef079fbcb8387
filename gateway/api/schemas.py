"""What the API sends: the shapes of the contract."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.devices.records import DeviceRecord, State, Verification
from gateway.devices.segments import BLOCK_BYTES, SegmentKind
from gateway.devices.spec import Layout


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


class ProgressView(BaseModel):
    """How far indexing is."""

    phase: str
    done: int = Field(description="Bytes")
    total: int = Field(description="Bytes; 0 while unknown")


class FailureView(BaseModel):
    """Why a device is not as it should be."""

    code: str
    detail: str


class ContentsView(BaseModel):
    """What a file system holds."""

    files: int
    directories: int
    symlinks: int
    specials: int
    bytes: int


class DeviceView(BaseModel):
    """A device."""

    name: str
    state: State
    verification: Verification
    layout: Layout
    size: int | None
    block_size: int
    etag: str | None
    data_url: str
    image: ImageView | None
    segments: list[SegmentView]
    progress: ProgressView | None
    error: FailureView | None
    created_at: datetime


class DeviceDetail(DeviceView):
    """A device with what is known of its image and its contents."""

    contents: ContentsView | None
    image_config: dict[str, Any] | None = Field(
        description="The OCI image configuration's `config` object: entrypoint, environment, working folder, user"
    )


class DeviceList(BaseModel):
    """All devices."""

    devices: list[DeviceView]


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
    disk_write_errors: dict[str, int]


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


def view(record: DeviceRecord, base_url: str) -> DeviceView:
    """A device as the API shows it."""
    return DeviceView(**_fields(record, base_url))


def detail(record: DeviceRecord, base_url: str) -> DeviceDetail:
    """A device with its details."""
    contents = ContentsView(**record.contents) if record.contents else None
    return DeviceDetail(**_fields(record, base_url), contents=contents, image_config=_config(record))


def _fields(record: DeviceRecord, base_url: str) -> dict[str, Any]:
    image, progress, failure = record.image, record.progress, record.failure
    return {
        "name": record.name,
        "state": record.state,
        "verification": record.verification,
        "layout": record.spec.layout,
        "size": record.size,
        "block_size": BLOCK_BYTES,
        "etag": record.etag,
        "data_url": f"{base_url.rstrip('/')}/v1/devices/{record.name}/data",
        "image": ImageView(reference=image.reference, digest=image.digest, platform=image.platform)
        if image
        else None,
        "segments": [
            SegmentView(kind=s.kind, offset=s.offset, length=s.length, digest=s.digest)
            for s in record.segments
        ],
        "progress": ProgressView(phase=progress.phase, done=progress.done, total=progress.total)
        if progress
        else None,
        "error": FailureView(code=failure.code, detail=failure.detail) if failure else None,
        "created_at": record.created_at,
    }


def _config(record: DeviceRecord) -> dict[str, Any] | None:
    if record.image is None:
        return None
    try:
        parsed = json.loads(record.image.config)
    except ValueError:
        return None
    config = parsed.get("config") if isinstance(parsed, dict) else None
    return config if isinstance(config, dict) else {}
