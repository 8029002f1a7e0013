"""The table, and the way to it, for the application and for the queue."""

import os

from sqlalchemy import DateTime, String, create_engine, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker


class Base(DeclarativeBase):
    pass


class Job(Base):
    """Words to count. The queue fills in the answer."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(2000))
    words: Mapped[int] = mapped_column(nullable=True)
    made: Mapped[object] = mapped_column(DateTime(timezone=True), server_default=func.now())


def open_sessions(size):
    engine = create_engine(os.environ["DATABASE_URL"], pool_size=size, max_overflow=0, pool_pre_ping=True)
    return sessionmaker(engine, expire_on_commit=False)
