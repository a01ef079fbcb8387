"""What somebody asks for when registering a device: the body of ``PUT /v1/devices/{name}``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from blockgate.digests import DIGEST
from blockgate.names import is_device_name
from gateway.errors import InvalidRequest

Layout = Literal["filesystem", "tar", "raw"]
Verify = Literal["before", "background"]
Digest = Annotated[str, StringConstraints(pattern=DIGEST)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSpec(_Strict):
    """Where the image is."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="An image reference (`docker.io/library/python:3.12`, `host:port/name@sha256:…`) or `oci:DIR[:TAG]`"
    )
    platform: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9_.]+)?$")] = (
        "linux/amd64"
    )
    insecure: bool = Field(default=False, description="Speak plain HTTP to the registry")
    credentials: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        default=None,
        description="Name of an entry of the gateway's configuration, or of credentials that were stored; null looks the "
        "host up in the gateway's docker and podman files",
    )


class LayerByIndex(_Strict):
    """A layer by its place, 0 being the base."""

    index: Annotated[int, Field(ge=0, le=1023)]


class LayerByDigest(_Strict):
    """A layer by its blob's digest."""

    digest: Digest


class DeviceSpec(_Strict):
    """A registration."""

    source: SourceSpec
    layout: Layout = "filesystem"
    layer: LayerByIndex | LayerByDigest | None = None
    metadata: Digest | None = Field(default=None, description="An uploaded EROFS image to put in front")
    zinfo: Digest | None = Field(
        default=None, description="An uploaded checkpoint table to use for the layer"
    )
    verify: Verify = Field(
        default="before",
        description="`before`: a full pass proves a supplied zinfo before the device is ready; `background`: it serves at "
        "once under weaker checks while the pass runs",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.layout != "filesystem" and self.layer is None:
            raise ValueError(f"layout {self.layout} is one layer's bytes: name the layer")
        if self.layout != "filesystem" and self.metadata is not None:
            raise ValueError(f"layout {self.layout} has no metadata")
        if self.zinfo is not None and self.layer is None:
            raise ValueError("a zinfo belongs to one layer: name the layer")
        if self.zinfo is not None and self.layout == "raw":
            raise ValueError("layout raw serves the blob as it is and has no use for a zinfo")
        return self


def check_name(name: str) -> str:
    """Return a device's name; raises ``InvalidRequest`` for one that is none."""
    if not is_device_name(name):
        raise InvalidRequest(
            f"{name[:140]!r} is no device name: 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
        )
    return name
