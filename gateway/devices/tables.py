"""The catalog's tables. A change here needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, DateTime, MetaData, String, Table, Text

metadata = MetaData()

devices = Table(
    "devices",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("spec", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("verification", String(16), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("size", BigInteger),
    Column("etag", String(128)),
    Column("segments", JSON, nullable=False),
    Column("image", JSON),
    Column("progress", JSON),
    Column("failure_code", String(64)),
    Column("failure_detail", Text),
    Column("contents", JSON),
)
