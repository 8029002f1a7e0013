"""What `alembic upgrade head` runs on a database that is at head already: one connection, nothing to apply.

FFE's own env.py imports the whole application on top of this, which costs seconds: the peer is flattered.
"""

import os

from alembic import context
from sqlalchemy import create_engine, pool

engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
