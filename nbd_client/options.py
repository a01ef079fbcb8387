"""``-o`` of ``mount``: mount.erofs' own options for images in registries, and the usual mount flags. Addresses. PURE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from nbd_client.errors import InvalidOption

# The mount is read-only, without devices and set-user-ID programs, whatever is asked for.
_IMPLIED = frozenset(
    {"ro", "nosuid", "nodev", "defaults", "_netdev", "nofail", "auto", "noauto", "user", "loop"}
)
_ALIASES = {"oci.tarindex": "oci.local_meta"}
_HELPER = {"gateway": "http://127.0.0.1:8080", "via": "fuse"}
_OCI = frozenset({"blob", "layer", "platform", "insecure", "local_meta", "zinfo", "username", "password"})
_LOOPBACK = "127.0.0.1"
_MAX_PORT = 65535
_DEFAULT_REGISTRY = "docker.io"
_BOOLEANS = {"": True, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What ``-o`` said. ``kernel`` are options handed to the file system; files are paths as they were given."""

    blob: str | None = None
    layer: int | None = None
    platform: str | None = None
    insecure: bool = False
    local_meta: str | None = None
    zinfo: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    kernel: tuple[str, ...] = ()

    @property
    def oci(self) -> bool:
        """Whether any option is about an image rather than about the mount."""
        return MountOptions(kernel=self.kernel) != self


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What a reference meant when the gateway was asked: digests of the manifest and of the layers, base first.

    ``native`` are those of the layers that are EROFS images themselves, as their media types say.
    """

    pinned: str
    digest: str
    platform: str
    layers: tuple[str, ...]
    native: frozenset[str] = frozenset()


def parse_options(text: str) -> MountOptions:
    """Parse ``a,b=c``. Raises ``InvalidOption`` naming the option."""
    found: dict[str, str] = {}
    kernel: list[str] = []
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        name = _ALIASES.get(name, name)
        if name.startswith("oci."):
            if name[4:] not in _OCI:
                raise InvalidOption(f"{name} is not an option; there are oci.{', oci.'.join(sorted(_OCI))}")
            if name[4:] in found:
                raise InvalidOption(f"{name} is given twice")
            found[name[4:]] = value
        elif name not in _IMPLIED:
            if name in {"rw", "suid", "dev"}:
                raise InvalidOption(f"{name}: an image is mounted read-only, nosuid and nodev")
            kernel.append(option)
    if "blob" in found and "layer" in found:
        raise InvalidOption("oci.blob and oci.layer both name a layer; give one of them")
    if ("username" in found) != ("password" in found):
        raise InvalidOption("oci.username and oci.password belong together; give both of them")
    return MountOptions(
        blob=_required(found, "blob"),
        layer=_number(_required(found, "layer")),
        platform=_required(found, "platform"),
        insecure=_boolean(found.get("insecure", "no")),
        local_meta=_required(found, "local_meta"),
        zinfo=_required(found, "zinfo"),
        username=_required(found, "username"),
        password=_required(found, "password"),
        kernel=tuple(kernel),
    )


def helper_options(text: str) -> tuple[dict[str, str], list[str]]:
    """What ``/etc/fstab`` and mount(8) say besides ``parse_options``' words: ``gateway`` and ``via``, and the rest.

    Left out of the rest: ``rw``, which mount(8) says whenever nobody said ``ro``, and comments of other programs.
    Raises ``InvalidOption`` for one of ours without a value, or given twice.
    """
    found: dict[str, str] = {}
    rest = []
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name in _HELPER:
            if not value or name in found:
                raise InvalidOption(f"{name} needs one value, as in {name}={_HELPER[name]}")
            found[name] = value
        elif name not in {"rw", "comment"} and not name.lower().startswith("x-"):
            rest.append(option)
    return found, rest


def specification(
    image: str,
    options: MountOptions,
    metadata: str | None = None,
    zinfo: str | None = None,
    credentials: str | None = None,
) -> dict[str, object]:
    """The gateway's registration body. ``metadata`` and ``zinfo`` are digests of uploaded files, ``credentials`` a name."""
    source: dict[str, object] = {"image": image}
    if options.platform is not None:
        source["platform"] = options.platform
    if options.insecure:
        source["insecure"] = True
    if credentials is not None:
        source["credentials"] = credentials
    body: dict[str, object] = {"source": source}
    if options.blob is not None:
        body["layer"] = {"digest": options.blob if ":" in options.blob else f"sha256:{options.blob}"}
    elif options.layer is not None:
        body["layer"] = {"index": options.layer}
    if metadata is not None:
        body["metadata"] = metadata
    if zinfo is not None:
        body["zinfo"] = zinfo
    return body


def registry_of(image: str) -> str:
    """The registry (``host[:port]``) that a reference names. Raises ``InvalidOption`` for a folder, which has none."""
    if image.startswith("oci:"):
        raise InvalidOption("oci.username and oci.password are for a registry; this source is a folder")
    first, slash, _ = image.partition("/")
    named = slash and (first == "localhost" or any(mark in first for mark in ".:[") or first != first.lower())
    return first.lower() if named else _DEFAULT_REGISTRY


def credentials_name(host: str, username: str) -> str:
    """The name under which a user's password for a registry is stored: a new password takes the old one's place."""
    return "mount-" + hashlib.sha256(f"{host}\0{username}".encode()).hexdigest()[:32]


def pinned(body: Mapping[str, object], image: ResolvedImage) -> dict[str, object]:
    """``body`` for the image that its reference meant, with a layer's number replaced by its digest.

    A tag that moves then leads to another device, and two ways of saying the same lead to one. As mount.erofs does: a
    layer that is an EROFS image is mounted as it is, unless there is metadata for it or a zinfo.
    Raises ``InvalidOption`` for a layer that the image does not have.
    """
    source, layer = body["source"], body.get("layer")
    assert isinstance(source, Mapping)  # noqa: S101  as specification made it
    made: dict[str, object] = {**body, "source": {**source, "image": image.pinned}}
    if isinstance(layer, Mapping):
        digest = layer.get("digest")
        if digest is None:
            if layer["index"] >= len(image.layers):
                raise InvalidOption(
                    f"oci.layer={layer['index']}: the image has {len(image.layers)} layers, 0 is the base"
                )
            digest = image.layers[layer["index"]]
        elif digest not in image.layers:
            raise InvalidOption(f"oci.blob={digest}: no layer of the image; it has {', '.join(image.layers)}")
        made["layer"] = {"digest": digest}
    elif len(image.layers) == 1 and image.native:
        digest = image.layers[0]
        made["layer"] = {"digest": digest}
    else:
        return made
    if digest in image.native and not made.keys() & {"metadata", "zinfo"}:
        made["layout"] = "raw"
    return made


def device_name(body: Mapping[str, object], image: ResolvedImage) -> str:
    """The name of the device that shows ``image`` in this way: its digest, and a short hash of the way.

    What decides about bytes is in it, and nothing else: not the tag, the repository, or how the registry is
    spoken to.
    """
    way = {key: body.get(key) for key in ("layer", "metadata", "zinfo", "layout")}
    canonical = json.dumps({**way, "platform": image.platform}, sort_keys=True, separators=(",", ":"))
    algorithm, _, encoded = image.digest.partition(":")
    return f"{algorithm}-{encoded[:64]}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPV6]:PORT``. Raises ``InvalidOption``."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidOption(f"{text}: put an IPv6 address in brackets, as in [::1]:10809")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise InvalidOption(f"{text}: an address looks like 127.0.0.1:10809")
    return host, int(port)


def metrics_address(text: str) -> tuple[str, int]:
    """As :func:`parse_address`; a port alone is one of loopback. Raises ``InvalidOption``."""
    return parse_address(text if ":" in text else f"{_LOOPBACK}:{text}")


def _required(found: dict[str, str], name: str) -> str | None:
    if name in found and not found[name]:
        raise InvalidOption(f"oci.{name} needs a value")
    return found.get(name)


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InvalidOption(f"oci.layer={text}: the number of a layer, 0 is the base")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise InvalidOption(f"oci.insecure={text}: yes or no")
    return _BOOLEANS[text.lower()]
