"""What the API sends: the shapes of the contract."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from blockgate.names import content_path, data_path
from gateway.api.problems import public_detail
from gateway.recipes.records import DeviceRecord, DeviceSummary, Failure
from gateway.recipes.segments import BLOCK_BYTES, SegmentKind
from gateway.recipes.spec import Layout
from gateway.recipes.states import State, Verification

Health = Literal["ok", "degraded"]


class View(BaseModel):
    """Made of what the inside of the gateway has under the same names."""

    model_config = ConfigDict(from_attributes=True)


class ImageView(BaseModel):
    """The image that a device was made of."""

    reference: str
    digest: str
    platform: str


class SegmentView(View):
    """A run of device bytes that comes from one place."""

    kind: SegmentKind
    offset: int
    length: int
    digest: str | None


class FailureView(View):
    """Why a device is not as it should be."""

    code: str
    detail: str

    @field_validator("detail")
    @classmethod
    def _for_clients(cls, detail: str, info: ValidationInfo) -> str:
        return public_detail(info.data["code"], detail)


class ProgressView(View):
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


class ResolvedLayer(View):
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
    return DeviceSummaryView(
        layout=device.layout,
        size=device.size,
        image=_image(device.image, device.manifest, device.platform),
        **_common(device, base_url, trouble),
    )


def view(record: DeviceRecord, base_url: str, trouble: Failure | None = None) -> DeviceView:
    """A device as the API shows it."""
    return DeviceView(**_fields(record, base_url, trouble))


def detail(record: DeviceRecord, base_url: str, trouble: Failure | None, config: str | None) -> DeviceDetail:
    """A device with its details."""
    return DeviceDetail(
        contents=ContentsView(**record.contents) if record.contents else None,
        image_config=_config(config),
        **_fields(record, base_url, trouble),
    )


def _fields(record: DeviceRecord, base_url: str, trouble: Failure | None) -> dict[str, Any]:
    recipe = record.recipe
    return {
        "layout": record.spec.layout,
        "size": recipe.size if recipe else None,
        "image": _image(recipe.reference, recipe.manifest, recipe.platform) if recipe else None,
        "segments": recipe.segments if recipe else (),
        **_common(record, base_url, trouble),
    }


def _common(device: DeviceSummary | DeviceRecord, base_url: str, trouble: Failure | None) -> dict[str, Any]:
    """What summaries and whole records have alike."""
    path = data_path(device.name) if device.etag is None else content_path(device.etag)
    return {
        "name": device.name,
        "state": device.state,
        "health": "ok" if trouble is None else "degraded",
        "verification": device.verification,
        "block_size": BLOCK_BYTES,
        "etag": device.etag,
        "data_url": f"{base_url.rstrip('/')}{path}",
        "progress": device.progress,
        "error": device.failure or trouble,
        "created_at": device.created_at,
    }


def _image(reference: str, manifest: str | None, platform: str) -> ImageView | None:
    if manifest is None:
        return None
    return ImageView(reference=reference, digest=manifest, platform=platform)


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
