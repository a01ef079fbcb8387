"""The catalog's tables. A change here needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

# One row is one device, and the job of making it. Lists read all columns but spec, recipe and contents.
devices = Table(
    "devices",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("spec", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("verification", String(16), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("layout", String(16), nullable=False),
    Column("image", Text, nullable=False),
    Column("platform", String(64), nullable=False),
    Column("manifest", String(80)),
    Column("size", BigInteger),
    Column("etag", String(80), index=True),
    Column("recipe", JSON),
    Column("contents", JSON),
    Column("progress", JSON),
    Column("failure_code", String(64)),
    Column("failure_detail", Text),
)

# Configurations of images are up to 8 MiB: they are read for one device at a time.
image_configs = Table(
    "image_configs",
    metadata,
    Column("manifest", String(80), primary_key=True),
    Column("config", Text, nullable=False),
)

# ``attempt`` is empty where the copy that counted was dropped and no other has been made yet.
layer_indexes = Table(
    "layer_indexes",
    metadata,
    Column("blob", String(80), primary_key=True),
    Column("cut", String(80), primary_key=True),
    Column("attempt", String(32), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("used_at", Double, nullable=False),
)

device_layers = Table(
    "device_layers",
    metadata,
    Column("uid", String(32), ForeignKey("devices.uid", ondelete="CASCADE"), primary_key=True),
    Column("blob", String(80), primary_key=True),
    Column("cut", String(80), primary_key=True),
    ForeignKeyConstraint(["blob", "cut"], ["layer_indexes.blob", "layer_indexes.cut"]),
)

# Metadata that was built once, by what it was built of.
metadata_builds = Table(
    "metadata_builds",
    metadata,
    Column("source", String(64), primary_key=True),
    Column("digest", String(80), nullable=False),
    Column("facts", JSON, nullable=False),
)

# Tables of checkpoints that a pass contradicted.
refuted_tables = Table(
    "refuted_tables",
    metadata,
    Column("zinfo", String(80), primary_key=True),
    Column("blob", String(80), primary_key=True),
    Column("reason", Text, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("owner", String(80), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("until", Double, nullable=False),
)

changes = Table(
    "changes",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("uid", String(32), nullable=False),
)
