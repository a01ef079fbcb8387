"""Image references: what a user types, parsed strictly and written back in one canonical form. Pure.

The grammar is that of distribution's reference package, with docker.io's defaults::

    python:3.12                       docker.io/library/python:3.12
    127.0.0.1:5000/a/b@sha256:…       127.0.0.1:5000/a/b@sha256:…
    [::1]:5000/x                      [::1]:5000/x:latest
    oci:/srv/images/base:1.0          an OCI layout folder and a tag in it

The first component names a registry when it holds a dot or a colon, is ``localhost``, or is in brackets.
``oci:`` always names a folder, also where ``oci`` could be read as a repository of docker.io.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from gateway.errors import InvalidReference

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_OFFICIAL_NAMESPACE = "library"
_FOLDER_PREFIX = "oci:"
_MAX_LENGTH = 4096
_MAX_NAME_LENGTH = 255
_MAX_PORT = 65535
_API_HOSTS = {DEFAULT_REGISTRY: "registry-1.docker.io"}
_ALIASES = {"index.docker.io": DEFAULT_REGISTRY}

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HOST_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed image reference. ``str()`` gives its canonical text, which parses to an equal value.

    ``registry`` is ``host[:port]`` in lower case, or None for an OCI layout folder, whose path is then in
    ``repository``. At least one of ``tag`` and ``digest`` is set for a registry; a folder may have neither.
    """

    registry: str | None
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether this names an OCI layout folder."""
        return self.registry is None

    @property
    def api_host(self) -> str:
        """``host[:port]`` where the registry's API answers. Raises ``InvalidReference`` for a folder."""
        if self.registry is None:
            raise InvalidReference(f"{self} is a folder and has no registry")
        return _API_HOSTS.get(self.registry, self.registry)

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest where there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def pinned(self, digest: str) -> Reference:
        """The same repository at ``digest``, without a tag, which may move."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        name = (
            f"{_FOLDER_PREFIX}{self.repository}"
            if self.registry is None
            else f"{self.registry}/{self.repository}"
        )
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{name}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Parse ``text``. Raises ``InvalidReference`` naming the part that is wrong."""
    if not text:
        raise InvalidReference("an image reference is empty")
    if len(text) > _MAX_LENGTH:
        raise InvalidReference(
            f"an image reference has {len(text)} characters, at most {_MAX_LENGTH} are read"
        )
    if text.startswith(_FOLDER_PREFIX):
        return _parse_folder(text)
    if "://" in text:
        raise InvalidReference(f"{text!r} is a URL; write the image without its scheme")
    name, digest = _split_digest(text)
    first, slash, rest = name.partition("/")
    if slash and _names_registry(first):
        registry, path = _parse_registry(first, text), rest
    else:
        registry, path = DEFAULT_REGISTRY, name
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidReference(
            f"{text!r}: {tag!r} is not a tag (letters, digits, '_', '.', '-', at most 128)"
        )
    if registry == DEFAULT_REGISTRY and path and "/" not in path:
        path = f"{_OFFICIAL_NAMESPACE}/{path}"
    _check_repository(path, registry, text)
    if not tag and digest is None:
        tag = DEFAULT_TAG
    return Reference(registry=registry, repository=path, tag=tag or None, digest=digest)


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest that can be verified here: sha256 or sha512 in lower-case hexadecimal."""
    return _DIGEST.fullmatch(text) is not None


def _parse_folder(text: str) -> Reference:
    path, digest = _split_digest(text.removeprefix(_FOLDER_PREFIX))
    tag: str | None = None
    head, colon, tail = path.rpartition(":")
    if colon and "/" not in tail:
        if not _TAG.fullmatch(tail):
            raise InvalidReference(f"{text!r}: {tail!r} is not a tag")
        path, tag = head, tail
    if not path:
        raise InvalidReference(f"{text!r} names no folder; write oci:DIR[:TAG]")
    if "\0" in path:
        raise InvalidReference("a folder's path holds a NUL character")
    return Reference(registry=None, repository=path, tag=tag, digest=digest)


def _split_digest(text: str) -> tuple[str, str | None]:
    name, at, digest = text.rpartition("@")
    if not at:
        return text, None
    if not is_digest(digest):
        raise InvalidReference(
            f"{text!r}: {digest!r} is not a digest (sha256: and 64 lower-case hexadecimal digits)"
        )
    return name, digest


def _names_registry(component: str) -> bool:
    return (
        component == "localhost" or any(mark in component for mark in ".:[") or component != component.lower()
    )


def _parse_registry(text: str, whole: str) -> str:
    host, colon, port = text.lower(), "", ""
    if host.startswith("["):
        host, bracket, after = host.partition("]")
        colon, port = after[:1], after[1:]
        if not bracket or (after and colon != ":"):
            raise InvalidReference(f"{whole!r}: {text!r} is not an IPv6 address in brackets")
        try:
            host = f"[{ipaddress.IPv6Address(host[1:])}]"
        except ValueError as error:
            raise InvalidReference(f"{whole!r}: {text!r} is not an IPv6 address") from error
        if "%" in host:
            raise InvalidReference(f"{whole!r}: an address with a scope cannot name a registry")
    else:
        host, colon, port = host.partition(":")
        if len(host) > _MAX_NAME_LENGTH or not all(_HOST_LABEL.fullmatch(label) for label in host.split(".")):
            raise InvalidReference(f"{whole!r}: {host!r} is not a host name")
    if colon and not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= _MAX_PORT):  # noqa: PLR2004
        raise InvalidReference(f"{whole!r}: {port!r} is not a port")
    name = f"{host}:{int(port)}" if colon else host
    return _ALIASES.get(name, name)


def _check_repository(path: str, registry: str, whole: str) -> None:
    if not path:
        raise InvalidReference(f"{whole!r} names no repository")
    if _CONTROL.search(path):
        raise InvalidReference(f"{whole!r} holds a space or control character")
    if len(path) + len(registry) + 1 > _MAX_NAME_LENGTH:
        raise InvalidReference(f"an image name has more than {_MAX_NAME_LENGTH} characters: {whole[:80]!r}…")
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise InvalidReference(
                f"{whole!r}: {component!r} is not a repository component (lower case letters and digits, "
                "joined by '.', '_', '__' or '-')"
            )
