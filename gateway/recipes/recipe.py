"""The recipe of a device: all that is needed to make its bytes again, here or on another replica. PURE.

It is written once, when the device becomes ready, and nothing changes it afterwards. Healing, restoring and opening
work from it and never from a tag; whoever makes a part again checks that it came out as the recipe says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gateway.errors import NewerFormat
from gateway.layers.key import LayerKey
from gateway.recipes.segments import Segment, identity, total

FORMAT = 1
_UNPROVEN = "-unproven-"


@dataclass(frozen=True, slots=True)
class LayerRecipe:
    """A layer: its descriptor in the image, and the index that its bytes are read by.

    ``size`` is the blob's length in bytes, ``length`` that of its decoded bytes. ``diff_id`` is what the image's
    configuration promises of those; ``None`` where the blob is served as it is.
    """

    media_type: str
    digest: str
    size: int
    diff_id: str | None
    codec: str
    cut: str
    span_size: int
    length: int
    zinfo: str | None = None
    """The supplied table that cuts it."""

    @property
    def key(self) -> LayerKey:
        """Name of its index."""
        return LayerKey(self.digest, self.cut)


@dataclass(frozen=True, slots=True)
class MetadataRecipe:
    """The EROFS metadata in front: an artifact, made here from the layers' contents or handed in."""

    digest: str
    size: int
    cut: str
    span_size: int
    generated: bool

    @property
    def key(self) -> LayerKey:
        """Name of its index: it is cut and digested like a layer, so that each read of it is verified like one."""
        return LayerKey(self.digest, self.cut)


@dataclass(frozen=True, slots=True)
class Recipe:
    """``reference`` is the image as it was asked for, ``manifest`` what that meant.

    ``unproven_zinfo`` is the supplied table under which the device was served before a pass had proven it, if it was.
    """

    reference: str
    manifest: str
    platform: str
    layers: tuple[LayerRecipe, ...]
    metadata: MetadataRecipe | None
    segments: tuple[Segment, ...]
    unproven_zinfo: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the device."""
        return total(self.segments)

    @property
    def etag(self) -> str:
        """The strong entity tag of the device's bytes."""
        return identity(self.segments)

    @property
    def keys(self) -> tuple[LayerKey, ...]:
        """Every index that the device reads by."""
        front = () if self.metadata is None else (self.metadata.key,)
        return tuple(dict.fromkeys((*front, *(layer.key for layer in self.layers))))

    def to_json(self) -> dict[str, Any]:
        """For the catalog."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """From the catalog. Keys that are not known are left out. Raises ``NewerFormat`` for a later format."""
        try:
            if data.get("format", FORMAT) > FORMAT:
                raise NewerFormat(
                    f"its recipe has format {data['format']}, this version reads up to {FORMAT}; "
                    "run the version that wrote it"
                )
            metadata = data.get("metadata")
            return cls(
                reference=data["reference"],
                manifest=data["manifest"],
                platform=data["platform"],
                layers=tuple(LayerRecipe(**_known(LayerRecipe, layer)) for layer in data["layers"]),
                metadata=None if metadata is None else MetadataRecipe(**_known(MetadataRecipe, metadata)),
                segments=tuple(Segment(**_known(Segment, segment)) for segment in data["segments"]),
                unproven_zinfo=data.get("unproven_zinfo"),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise NewerFormat(
                f"its recipe cannot be understood ({error}); run the version that wrote it"
            ) from error


def unproven_tag(etag: str, zinfo: str) -> str:
    """Entity tag of a device's bytes while only the supplied table ``zinfo`` vouches for them.

    Two tables may give different bytes for one layer, and both may be wrong: neither may share a cache entry with
    what is proven.
    """
    return f'"{etag.strip(chr(34))}{_UNPROVEN}{zinfo.rpartition(":")[2][:12]}"'


def proven_tag(etag: str) -> str:
    """The entity tag that an unproven one stands for; a proven one as it is."""
    return f'"{etag.strip(chr(34)).partition(_UNPROVEN)[0]}"'


def _known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name in kind.__dataclass_fields__}
