"""The table of jobs, which is the queue too."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade():
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("text", sa.String(2000), nullable=False),
        sa.Column("words", sa.Integer),
        sa.Column("made", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    # What the queue looks for, and nothing else.
    op.create_index("jobs_waiting", "jobs", ["id"], postgresql_where=sa.text("words IS NULL"))


def downgrade():
    op.drop_table("jobs")
