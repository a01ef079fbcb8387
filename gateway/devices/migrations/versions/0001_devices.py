"""The devices table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
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
        sa.Column("size", sa.BigInteger()),
        sa.Column("etag", sa.String(128)),
        sa.Column("segments", sa.JSON(), nullable=False),
        sa.Column("image", sa.JSON()),
        sa.Column("progress", sa.JSON()),
        sa.Column("failure_code", sa.String(64)),
        sa.Column("failure_detail", sa.Text()),
        sa.Column("contents", sa.JSON()),
    )
    op.create_index("ix_devices_state", "devices", ["state"])


def downgrade() -> None:
    """Undo."""
    op.drop_table("devices")
