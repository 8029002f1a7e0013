"""The newest revision, by name: the databases that are measured are there already."""

revision = "004_add_indexes"
down_revision = None


def upgrade() -> None:
    raise RuntimeError("the database is expected to be at head")
