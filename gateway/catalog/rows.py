"""Rows of the devices table as records. PURE.

A row of a later version must not stop this one: what cannot be understood becomes a record that says so in ``newer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from gateway.catalog.tables import devices
from gateway.errors import NewerFormat
from gateway.recipes.recipe import Recipe
from gateway.recipes.records import DeviceRecord, DeviceSummary, Failure, Progress
from gateway.recipes.spec import DeviceSpec, SourceSpec
from gateway.recipes.states import State, Verification

SUMMARY = [column for column in devices.c if column.name not in ("spec", "recipe", "contents")]

CONTENTS = ("files", "directories", "symlinks", "specials", "bytes")
"""What is counted of a file system."""

Row = Mapping[Any, Any]


def record(row: Row) -> DeviceRecord:
    """A whole row."""
    newer: list[str] = []
    spec = _spec(row, newer)
    recipe = _recipe(row, newer)
    return DeviceRecord(
        name=row["name"],
        uid=row["uid"],
        spec=spec,
        state=_state(row, newer),
        verification=_verification(row, newer),
        created_at=_created(row),
        recipe=recipe,
        progress=_progress(row["progress"]),
        failure=_failure(row, newer),
        contents=_contents(row),
        newer="; ".join(newer) or None,
    )


def summary(row: Row) -> DeviceSummary:
    """The columns of ``SUMMARY``."""
    newer: list[str] = []
    return DeviceSummary(
        name=row["name"],
        uid=row["uid"],
        state=_state(row, newer),
        verification=_verification(row, newer),
        layout=row["layout"],
        created_at=_created(row),
        size=row["size"],
        etag=row["etag"],
        image=row["image"],
        manifest=row["manifest"],
        platform=row["platform"],
        progress=_progress(row["progress"]),
        failure=_failure(row, newer),
    )


def progress_json(progress: Progress | None) -> Any:
    """For the column."""
    return sa.null() if progress is None else asdict(progress)


def _state(row: Row, newer: list[str]) -> State:
    try:
        return State(row["state"])
    except ValueError:
        newer.append(f"its state {row['state']!r} is of a later version")
        return State.FAILED


def _verification(row: Row, newer: list[str]) -> Verification:
    try:
        return Verification(row["verification"])
    except ValueError:
        newer.append(f"its verification {row['verification']!r} is of a later version")
        return Verification.UNVERIFIED


def _spec(row: Row, newer: list[str]) -> DeviceSpec:
    try:
        return DeviceSpec.model_validate(row["spec"])
    except ValidationError as error:
        unknown = ", ".join(sorted({".".join(map(str, each["loc"])) for each in error.errors()}))
        newer.append(f"its specification has parts that this version does not know ({unknown})")
        source = SourceSpec.model_construct(image=row["image"], platform=row["platform"])
        return DeviceSpec.model_construct(source=source, layout=row["layout"])


def _recipe(row: Row, newer: list[str]) -> Recipe | None:
    if row["recipe"] is None:
        return None
    try:
        return Recipe.from_json(row["recipe"])
    except NewerFormat as error:
        newer.append(error.detail)
        return None


def _progress(data: Mapping[str, Any] | None) -> Progress | None:
    try:
        return None if not data else _understood(data)
    except (AttributeError, TypeError, ValueError):
        return None  # only shown: what cannot be understood is left out


def _understood(data: Mapping[str, Any]) -> Progress:
    error = data.get("error")
    retry_at = data.get("retry_at")
    return Progress(
        phase=str(data.get("phase", "")),
        done=int(data.get("done") or 0),
        total=int(data.get("total") or 0),
        error=Failure(str(error.get("code")), str(error.get("detail"))) if error else None,
        attempt=int(data.get("attempt") or 0),
        retry_at=None if retry_at is None else float(retry_at),
    )


def _failure(row: Row, newer: list[str]) -> Failure | None:
    if row["failure_code"] is not None:
        return Failure(row["failure_code"], row["failure_detail"] or "")
    return Failure(NewerFormat.code, "; ".join(newer)) if newer else None


def _contents(row: Row) -> dict[str, int] | None:
    found = row["contents"]
    if not isinstance(found, dict) or not all(isinstance(found.get(name), int) for name in CONTENTS):
        return None
    return {name: found[name] for name in CONTENTS}


def _created(row: Row) -> datetime:
    created: datetime = row["created_at"]
    # SQLite drops the zone; what was stored is UTC.
    return created if created.tzinfo else created.replace(tzinfo=UTC)
