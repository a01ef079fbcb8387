"""Credentials that were given over the API, in one file of the data folder that all workers share.

The file is this process' account's alone (0600), written aside and renamed, and read again when it changed. It is not
the catalog's: a dump of the database holds no password.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from blockgate import durable
from gateway.errors import InvalidRequest, StorageError
from gateway.locks import held
from gateway.registry.credentials import Credentials

_VERSION = 1
_MAX_ENTRIES = 1000

Revision = tuple[int, int, int] | None
"""Inode, size and time of change of the file; None where there is none."""


class StoredCredentials:
    """Entries by name. Reading and writing block a little and run on a thread, but for :meth:`revision`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._revision: Revision = None
        self._entries: dict[str, Credentials] = {}

    def revision(self) -> Revision:
        """What tells whether anything changed: one stat of a local file."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def entries(self) -> Mapping[str, Credentials]:
        """All entries. Raises ``StorageError``."""
        with self._lock:
            revision = self.revision()
            if revision != self._revision:
                self._entries = self._read()
                # As it was before reading: a change in between is noticed the next time.
                self._revision = revision
            return self._entries

    def put(self, name: str, entry: Credentials) -> bool:
        """Keep an entry; ``False`` when one of this name was replaced. Raises ``InvalidRequest``, ``StorageError``."""
        with self._writing() as entries:
            if name not in entries and len(entries) >= _MAX_ENTRIES:
                raise InvalidRequest(f"{_MAX_ENTRIES} credentials are kept already; remove some")
            created = name not in entries
            self._write({**entries, name: entry})
        return created

    def remove(self, name: str) -> bool:
        """Forget an entry; ``False`` when there is none. Raises ``StorageError``."""
        with self._writing() as entries:
            if name not in entries:
                return False
            self._write({other: entry for other, entry in entries.items() if other != name})
        return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[dict[str, Credentials]]:
        """Between reading and renaming no other worker writes. The lock is a file that stays: it is not the data."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(self._path.with_suffix(".lock")))
            except OSError as error:
                raise self._failure("written", error) from error
            yield self._read()

    def _read(self) -> dict[str, Credentials]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._failure("read", error) from error
        try:
            document = json.loads(content)
            if document["version"] != _VERSION:
                raise ValueError
            return {name: _decode(fields) for name, fields in document["entries"].items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            # "from None": the parser's error holds the text.
            raise StorageError(
                f"{self._path} cannot be understood; remove it and store the credentials again"
            ) from None

    def _write(self, entries: Mapping[str, Credentials]) -> None:
        document = {"version": _VERSION, "entries": {name: _encode(entry) for name, entry in entries.items()}}
        try:
            durable.replace(self._path, json.dumps(document).encode(), mode=0o600)
        except OSError as error:
            raise self._failure("written", error) from error

    def _failure(self, what: str, error: OSError) -> StorageError:
        return StorageError(f"{self._path} cannot be {what}: {error.strerror}")


def _encode(entry: Credentials) -> dict[str, Any]:
    return {
        "hosts": entry.hosts,
        "username": entry.username,
        "password": _revealed(entry.password),
        "identity_token": _revealed(entry.identity_token),
    }


def _decode(fields: Mapping[str, Any]) -> Credentials:
    return Credentials(
        fields["username"],
        _hidden(fields["password"]),
        _hidden(fields["identity_token"]),
        hosts=tuple(fields["hosts"]),
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _hidden(text: str | None) -> SecretStr | None:
    return SecretStr(text) if text is not None else None
