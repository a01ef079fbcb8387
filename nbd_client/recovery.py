"""What a new agent must know to take over the devices of one that died: one JSON file per device.

Versioned; no secrets (a URL with a query, which may hold a signature, is refused at attach); the identifier in
it is the kernel's backend identifier, so that nobody takes over a device that is somebody else's by now.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from blockgate import durable
from nbd_client.errors import RecordInvalid
from nbd_client.source.response import Pin

VERSION = 1
BACKEND_PREFIX = "blockgate-nbd-"
_SUFFIX = ".device.json"


@dataclass(frozen=True, slots=True)
class Record:
    """One attached device. ``size`` is the content's, in bytes; ``index`` is None until the kernel gave one."""

    backend: str
    url: str
    size: int
    etag: str | None
    last_modified: str | None
    index: int | None = None

    @property
    def pin(self) -> Pin:
        """The content that the device shows; nothing else may ever be read into it."""
        return Pin(self.size, _encoded(self.etag), _encoded(self.last_modified))


def new_record(url: str, pin: Pin) -> Record:
    """A record with an identifier of its own."""
    return Record(
        backend=f"{BACKEND_PREFIX}{secrets.token_hex(8)}",
        url=url,
        size=pin.size,
        etag=_decoded(pin.etag),
        last_modified=_decoded(pin.last_modified),
    )


class Records:
    """The records in one folder. Writing is atomic; a reader sees the old record or the new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, record: Record) -> None:
        """Write or replace."""
        path = self._path(record)
        text = json.dumps({"version": VERSION, **asdict(record)}, indent=1, sort_keys=True) + "\n"
        durable.replace(path, text.encode())

    def remove(self, record: Record) -> None:
        """Forget."""
        self._path(record).unlink(missing_ok=True)

    def load(self) -> tuple[list[Record], list[RecordInvalid]]:
        """Every record that can be understood, and an error for each that cannot."""
        records: list[Record] = []
        errors: list[RecordInvalid] = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                records.append(parse_record(path.read_bytes()))
            except (RecordInvalid, OSError) as error:
                errors.append(RecordInvalid(f"{path}: {error}; remove the file if its device is gone"))
        return records, errors

    def _path(self, record: Record) -> Path:
        return self._folder / f"{record.backend}{_SUFFIX}"


def parse_record(raw: bytes) -> Record:
    """Raises ``RecordInvalid`` for anything that this version did not write."""
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise RecordInvalid("not JSON") from error
    if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
        raise RecordInvalid(f"not a record of version {VERSION}")
    try:
        record = Record(**fields)
    except TypeError as error:
        raise RecordInvalid("other fields than a record has") from error
    optional_text = (record.etag, record.last_modified)
    if not (
        isinstance(record.backend, str)
        and record.backend.startswith(BACKEND_PREFIX)
        and "/" not in record.backend
        and isinstance(record.url, str)
        and all(text is None or isinstance(text, str) for text in optional_text)
        and _is_count(record.size)
        and (record.index is None or _is_count(record.index))
    ):
        raise RecordInvalid("a field has a wrong type or value")
    return record


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _encoded(value: str | None) -> bytes | None:
    return None if value is None else value.encode("latin-1", "replace")
