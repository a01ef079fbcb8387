"""Credentials by registry, from the files and helpers that docker and podman already use.

``config.json`` and ``auth.json`` share a format: ``auths`` (host → base64 of user:password, or an identity
token), ``credHelpers`` (host → helper) and ``credsStore`` (helper for every host). A helper is a program
``docker-credential-NAME``; it is given the host on stdin and answers with JSON on stdout, so that no secret
is ever in an argument or in the environment.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from gateway.errors import ConfigurationError, RegistryUnauthorized
from gateway.registry.reference import DEFAULT_REGISTRY

_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_FILE_BYTES = 4 * 1024 * 1024
# Docker keeps Docker Hub's credentials under this key, whatever the image's name says.
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset({DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io"})
# What a helper answers as the user name when its secret is an identity token.
_TOKEN_USER = "<token>"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name with a password, or an identity token (an OAuth2 refresh token).

    ``hosts`` are the registries (``host[:port]``) that may see a named entry; empty for any. Without them,
    whoever may register a device could send the entry to a registry of his own.
    """

    username: str = ""
    password: SecretStr | None = None
    identity_token: SecretStr | None = None
    hosts: tuple[str, ...] = ()

    def basic(self) -> str | None:
        """The value of a Basic Authorization header, or None where there is no password."""
        if self.password is None:
            return None
        pair = f"{self.username}:{self.password.get_secret_value()}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


class NamedStore(Protocol):
    """Entries by name that may change while the gateway runs: see ``gateway.registry.stored``."""

    def entries(self) -> Mapping[str, Credentials]:
        """All of them; blocking."""
        ...

    def revision(self) -> object:
        """Another value after each change; quick."""
        ...


def default_auth_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where docker and podman keep credentials, in the order of search. Pure; the files need not exist."""
    files: list[Path] = []
    if path := environ.get("REGISTRY_AUTH_FILE"):
        files.append(Path(path))
    if folder := environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(folder) / "containers" / "auth.json")
    home = environ.get("HOME")
    if folder := environ.get("XDG_CONFIG_HOME"):
        files.append(Path(folder) / "containers" / "auth.json")
    elif home:
        files.append(Path(home) / ".config" / "containers" / "auth.json")
    if folder := environ.get("DOCKER_CONFIG"):
        files.append(Path(folder) / "config.json")
    elif home:
        files.append(Path(home) / ".docker" / "config.json")
    return tuple(files)


class CredentialStore:
    """Looks credentials up. Files are read at each look-up, so that a new login needs no restart.

    ``named`` are the entries of the gateway's own configuration, for devices that ask for one by name;
    ``stored`` are asked for names that are not among them.
    """

    def __init__(
        self,
        files: Sequence[Path] = (),
        named: Mapping[str, Credentials] | None = None,
        *,
        stored: NamedStore | None = None,
        helper_seconds: float = 10.0,
    ) -> None:
        self._files = tuple(files)
        self._named = dict(named or {})
        self._stored = stored
        self._helper_seconds = helper_seconds

    async def look_up(self, host: str, repository: str, name: str | None = None) -> Credentials | None:
        """Credentials for ``host`` (``host[:port]``, docker.io for Docker Hub), or None to stay anonymous.

        Raises ``ConfigurationError`` for an unreadable file, a failing helper or an unknown ``name``.
        """
        if name is not None:
            return await self._look_up_name(name, host)
        for file in self._files:
            content = await asyncio.to_thread(_read, file)
            if content is None:
                continue
            helper = _helper_for(content, host)
            if helper and (found := await self._ask_helper(helper, _HUB_KEY if host in _HUB_HOSTS else host)):
                return found
            if found := _find(content, host, repository, file):
                return found
        return None

    def revision(self, name: str | None) -> object:
        """Another value once what ``name`` stands for may have changed: what was learnt with it must be forgotten."""
        if name is None or name in self._named or self._stored is None:
            return None
        return self._stored.revision()

    async def _look_up_name(self, name: str, host: str) -> Credentials:
        found = self._named.get(name)
        if found is None and self._stored is not None:
            found = (await asyncio.to_thread(self._stored.entries)).get(name)
        if found is None:
            raise ConfigurationError(f"no credentials are configured or stored under the name {name[:100]!r}")
        if found.hosts and host not in found.hosts:
            raise ConfigurationError(
                f"the credentials {name!r} are not for {host}, but for {', '.join(found.hosts)}"
            )
        return found

    async def _ask_helper(self, helper: str, server: str) -> Credentials | None:
        if not _HELPER_NAME.fullmatch(helper):
            raise ConfigurationError(f"{helper[:100]!r} is not the name of a credential helper")
        program = f"docker-credential-{helper}"
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise ConfigurationError(
                f"credential helper {program} cannot be started: {error.strerror}"
            ) from error
        try:
            async with asyncio.timeout(self._helper_seconds):
                output, _ = await process.communicate(server.encode())
        except TimeoutError as error:
            raise RegistryUnauthorized(
                f"credential helper {program} did not answer for {server} within {self._helper_seconds:.0f} s"
            ) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            if b"not found" in output:
                return None
            raise ConfigurationError(
                f"credential helper {program} failed for {server} (status {process.returncode})"
            )
        try:
            answer = json.loads(output)
            username, secret = str(answer["Username"]), SecretStr(str(answer["Secret"]))
        except (ValueError, KeyError, TypeError):
            # "from None": the parser's own error holds the text, which may be the secret.
            raise ConfigurationError(
                f"credential helper {program} answered with something else than JSON"
            ) from None
        if username == _TOKEN_USER:
            return Credentials(identity_token=secret)
        return Credentials(username, secret)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{file} is not JSON") from None
    return parsed if isinstance(parsed, dict) else None


def _helper_for(content: Mapping[str, Any], host: str) -> str | None:
    helpers = content.get("credHelpers")
    if isinstance(helpers, dict):
        names = {_host_of(str(key)): str(value) for key, value in helpers.items()}
        for candidate in _HUB_HOSTS if host in _HUB_HOSTS else {host}:
            if candidate in names:
                return names[candidate]
    store = content.get("credsStore")
    return store if isinstance(store, str) and store else None


def _find(content: Mapping[str, Any], host: str, repository: str, file: Path) -> Credentials | None:
    """The entry with the longest matching path: podman keeps some per namespace (``quay.io/team``)."""
    entries = content.get("auths")
    if not isinstance(entries, dict):
        return None
    hosts = _HUB_HOSTS if host in _HUB_HOSTS else {host}
    best: tuple[int, Any] | None = None
    for key, entry in entries.items():
        if _host_of(key) not in hosts or not isinstance(entry, dict):
            continue
        path = "" if "://" in key else key.partition("/")[2].strip("/")
        if path and f"{repository}/".startswith(f"{path}/") is False:
            continue
        if best is None or len(path) > best[0]:
            best = len(path), entry
    return _entry(best[1], host, file) if best else None


def _host_of(key: str) -> str:
    """The host of a key, which may be a bare host, a URL (docker's way) or host/namespace (podman's)."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]


def _entry(entry: Mapping[str, Any], host: str, file: Path) -> Credentials | None:
    if token := entry.get("identitytoken"):
        return Credentials(identity_token=SecretStr(str(token)))
    if auth := entry.get("auth"):
        try:
            username, colon, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise ConfigurationError(f"{file}: the entry of {host} is not base64 of user:password") from None
        # Docker's own writer left trailing NULs here for a time, and its reader strips them.
        return Credentials(username, SecretStr(password.strip("\0")))
    if "username" in entry and "password" in entry:
        return Credentials(str(entry["username"]), SecretStr(str(entry["password"])))
    return None
