"""The first schema that is kept: later ones are reached from here. That of version 0.1 ended with it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "devices",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("uid", sa.String(32), nullable=False, unique=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("verification", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("layout", sa.String(16), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("platform", sa.String(64), nullable=False),
        sa.Column("manifest", sa.String(80)),
        sa.Column("size", sa.BigInteger()),
        sa.Column("etag", sa.String(80)),
        sa.Column("recipe", sa.JSON()),
        sa.Column("contents", sa.JSON()),
        sa.Column("progress", sa.JSON()),
        sa.Column("failure_code", sa.String(64)),
        sa.Column("failure_detail", sa.Text()),
    )
    op.create_index("ix_devices_state", "devices", ["state"])
    op.create_index("ix_devices_etag", "devices", ["etag"])
    op.create_table(
        "image_configs",
        sa.Column("manifest", sa.String(80), primary_key=True),
        sa.Column("config", sa.Text(), nullable=False),
    )
    op.create_table(
        "layer_indexes",
        sa.Column("blob", sa.String(80), primary_key=True),
        sa.Column("cut", sa.String(80), primary_key=True),
        sa.Column("attempt", sa.String(32), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "device_layers",
        sa.Column("uid", sa.String(32), sa.ForeignKey("devices.uid", ondelete="CASCADE"), primary_key=True),
        sa.Column("blob", sa.String(80), primary_key=True),
        sa.Column("cut", sa.String(80), primary_key=True),
        sa.ForeignKeyConstraint(["blob", "cut"], ["layer_indexes.blob", "layer_indexes.cut"]),
    )
    op.create_table(
        "metadata_builds",
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
    )
    op.create_table(
        "refuted_tables",
        sa.Column("zinfo", sa.String(80), primary_key=True),
        sa.Column("blob", sa.String(80), primary_key=True),
        sa.Column("reason", sa.Text(), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("owner", sa.String(80), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("uid", sa.String(32), nullable=False),
    )


def downgrade() -> None:
    """Undo."""
    for table in (
        "changes",
        "leases",
        "refuted_tables",
        "metadata_builds",
        "device_layers",
        "layer_indexes",
        "image_configs",
        "devices",
    ):
        op.drop_table(table)
