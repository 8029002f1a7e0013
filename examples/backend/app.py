"""The reference backend: a small FastAPI app on SQLAlchemy and psycopg2, as the Finance Feedback Engine is built.

What touches the database is a plain `def`, which FastAPI runs in its thread pool: psycopg2 blocks. Every setting
comes from the environment, where Tandem puts it.
"""

import asyncio
import hashlib
import json
import os
import time
import uuid
from datetime import datetime, timezone
from typing import Any, Optional

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import DateTime, Integer, String, Text, create_engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

POOL_SIZE = int(os.environ.get("DB_POOL_SIZE", "20"))

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=POOL_SIZE,
    max_overflow=int(os.environ.get("DB_POOL_OVERFLOW", "10")),
    pool_recycle=int(os.environ.get("DB_POOL_RECYCLE", "3600")),
    pool_timeout=int(os.environ.get("DB_POOL_TIMEOUT", "30")),
    # A connection may have died with a restarted server: found out before it is used, not by a failed request.
    pool_pre_ping=True,
)
open_session = sessionmaker(engine, expire_on_commit=False)

app = FastAPI(title="Tandem reference backend")


class Base(DeclarativeBase):
    pass


class Decision(Base):
    """One row of FFE's `decision_cache`; the table is made by the migrations, never from here."""

    __tablename__ = "decision_cache"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    asset_pair: Mapped[str] = mapped_column(String(20))
    timestamp: Mapped[datetime] = mapped_column(DateTime)
    timeframe: Mapped[str] = mapped_column(String(10))
    decision_hash: Mapped[str] = mapped_column(String(64))
    decision_json: Mapped[str] = mapped_column(Text)
    confidence: Mapped[int] = mapped_column(Integer)
    market_regime: Mapped[Optional[str]] = mapped_column(String(20))
    created_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now())
    expires_at: Mapped[Optional[datetime]] = mapped_column(DateTime)


class NewDecision(BaseModel):
    """What a client sends; the limits are the columns'."""

    asset_pair: str = Field(min_length=1, max_length=20)
    timeframe: str = Field(min_length=1, max_length=10)
    confidence: int = Field(ge=0, le=100)
    decision: dict[str, Any]
    market_regime: Optional[str] = Field(default=None, max_length=20)


@app.get("/")
async def root() -> dict[str, str]:
    return {"app": app.title, "docs": "/docs", "health": "/health"}


@app.get("/health")
def health() -> JSONResponse:
    """What the database looks like from here; 503 when it does not answer."""
    database = inspect_database()
    status = 200 if database["available"] else 503
    return JSONResponse({"status": "healthy" if status == 200 else "unhealthy", "database": database}, status)


@app.get("/ready")
def ready() -> JSONResponse:
    """Ready when the database answers and a migration is recorded in it."""
    database = inspect_database()
    if not database["available"]:
        return JSONResponse({"ready": False, "reason": database["error"]}, 503)
    if database["schema_version"] is None:
        return JSONResponse({"ready": False, "reason": "alembic_version is empty: no migration has run"}, 503)
    return JSONResponse({"ready": True, "schema_version": database["schema_version"]})


@app.post("/decisions", status_code=201)
def create_decision(new: NewDecision) -> dict[str, Any]:
    decision_id = str(uuid.uuid4())
    content = json.dumps(new.decision, sort_keys=True)
    row = Decision(
        id=decision_id,
        asset_pair=new.asset_pair,
        timestamp=datetime.now(timezone.utc).replace(tzinfo=None),  # the column has no time zone
        timeframe=new.timeframe,
        # The column is unique, and the same decision may be taken twice: the id is part of what is hashed.
        decision_hash=hashlib.sha256(f"{decision_id}|{new.asset_pair}|{new.timeframe}|{content}".encode()).hexdigest(),
        decision_json=content,
        confidence=new.confidence,
        market_regime=new.market_regime,
    )
    with open_session.begin() as session:
        session.add(row)
        session.flush()
        session.refresh(row)
    return as_json(row)


@app.get("/decisions/{decision_id}")
def read_decision(decision_id: str) -> dict[str, Any]:
    with open_session() as session:
        row = session.get(Decision, decision_id)
    if row is None:
        raise HTTPException(404, "no such decision")
    return as_json(row)


@app.get("/slow")
async def slow(seconds: float = 1.0) -> dict[str, float]:
    """A request that is in flight for as long as one likes, to watch a stop."""
    await asyncio.sleep(seconds)
    return {"slept": seconds}


@app.get("/pid")
async def pid() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/stream")
async def stream() -> StreamingResponse:
    """A server-sent event a second, for ever: only the client or a stop ends it."""
    return StreamingResponse(count_seconds(), media_type="text/event-stream")


async def count_seconds():
    number = 0
    while True:
        yield f"data: {number}\n\n"
        number += 1
        await asyncio.sleep(1)


def inspect_database() -> dict[str, Any]:
    """The `database` object of FFE's guide, key for key."""
    found: dict[str, Any] = {
        "available": False,
        "latency_ms": None,
        "schema_version": None,
        "tables": [],
        "connections": None,
        "pool_size": POOL_SIZE,
        "error": None,
    }
    try:
        with open_session() as session:
            # Timed on a connection that the pool has already handed out: the server's answer, not the login.
            session.connection()
            start = time.perf_counter()
            session.execute(select(1))
            found["latency_ms"] = round((time.perf_counter() - start) * 1000, 2)
            found["tables"] = list_tables(session)
            found["connections"] = session.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            )
            if "alembic_version" in found["tables"]:
                found["schema_version"] = session.scalar(text("SELECT version_num FROM alembic_version"))
            found["available"] = True
    except SQLAlchemyError as error:
        # The class alone: the message of a failed connection names the host and the user.
        found["error"] = type(error).__name__
    return found


def list_tables(session: Session) -> list[str]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    return list(session.scalars(text(query)))


def as_json(row: Decision) -> dict[str, Any]:
    return {
        "id": row.id,
        "asset_pair": row.asset_pair,
        "timestamp": row.timestamp.isoformat(),
        "timeframe": row.timeframe,
        "decision_hash": row.decision_hash,
        "decision": json.loads(row.decision_json),
        "confidence": row.confidence,
        "market_regime": row.market_regime,
        "created_at": row.created_at.isoformat(),
        "expires_at": row.expires_at.isoformat() if row.expires_at else None,
    }
