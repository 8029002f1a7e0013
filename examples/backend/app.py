"""The reference backend: a small FastAPI application on FFE's own tables, with FFE's pool settings.

Handlers that ask the database are plain functions, as FFE's are: FastAPI runs them on its thread pool.
"""

import asyncio
import hashlib
import json
import os
import time
import uuid
from datetime import datetime, timezone

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import create_engine, inspect, text

POOL_SIZE = int(os.environ.get("DB_POOL_SIZE", "5"))

engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=POOL_SIZE,
    max_overflow=int(os.environ.get("DB_POOL_OVERFLOW", "10")),
    pool_recycle=int(os.environ.get("DB_POOL_RECYCLE", "3600")),
    pool_timeout=int(os.environ.get("DB_POOL_TIMEOUT", "30")),
    pool_pre_ping=True,
)

app = FastAPI(title="Tandem's reference backend")


class NewDecision(BaseModel):
    """What a client sends."""

    asset_pair: str = Field(max_length=20)
    timeframe: str = Field(max_length=10)
    confidence: int = Field(ge=0, le=100)
    decision: dict
    market_regime: str | None = Field(default=None, max_length=20)


def database_status() -> dict:
    """The guide's `database` object."""
    began = time.perf_counter()
    status = {
        "available": False,
        "latency_ms": None,
        "schema_version": None,
        "tables": [],
        "connections": None,
        "pool_size": POOL_SIZE,
        "error": None,
    }
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            status["latency_ms"] = round((time.perf_counter() - began) * 1000, 3)
            status["tables"] = sorted(inspect(connection).get_table_names())
            if "alembic_version" in status["tables"]:
                status["schema_version"] = connection.scalar(text("SELECT version_num FROM alembic_version"))
            status["connections"] = connection.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            )
            status["available"] = True
    except Exception as error:  # what broke is the answer here, whatever it is
        # Never the whole text: a driver's message may quote the connection string.
        status["error"] = type(error).__name__
    return status


@app.get("/health")
def health(response: Response) -> dict:
    database = database_status()
    if not database["available"]:
        response.status_code = 503
    return {
        "status": "healthy" if database["available"] else "unhealthy",
        "timestamp": datetime.now(timezone.utc).isoformat(),
        "database": database,
    }


@app.get("/ready")
def ready(response: Response) -> dict:
    database = database_status()
    if database["schema_version"] is None:
        response.status_code = 503
        return {"ready": False, "reason": database["error"] or "alembic_version is empty"}
    return {"ready": True, "schema_version": database["schema_version"]}


@app.post("/decisions", status_code=201)
def create_decision(new: NewDecision) -> dict:
    decision = json.dumps(new.decision, sort_keys=True)
    identity = str(uuid.uuid4())
    row = {
        "id": identity,
        "asset_pair": new.asset_pair,
        "timestamp": datetime.now(timezone.utc).replace(tzinfo=None),
        "timeframe": new.timeframe,
        "decision_hash": hashlib.sha256(f"{identity}{decision}".encode()).hexdigest(),
        "decision_json": decision,
        "confidence": new.confidence,
        "market_regime": new.market_regime,
    }
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO decision_cache (id, asset_pair, timestamp, timeframe, decision_hash, decision_json,"
                " confidence, market_regime) VALUES (:id, :asset_pair, :timestamp, :timeframe, :decision_hash,"
                " :decision_json, :confidence, :market_regime)"
            ),
            row,
        )
    return {"id": identity, "decision_hash": row["decision_hash"]}


@app.get("/decisions/{identity}")
def read_decision(identity: str) -> dict:
    with engine.connect() as connection:
        row = (
            connection.execute(text("SELECT * FROM decision_cache WHERE id = :id"), {"id": identity})
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise HTTPException(404, "no such decision")
    decision = dict(row)
    decision["decision"] = json.loads(decision.pop("decision_json"))
    return decision


@app.get("/slow")
async def slow(seconds: float = 1.0) -> dict:
    await asyncio.sleep(seconds)
    return {"slept": seconds, "pid": os.getpid()}


@app.get("/pid")
async def pid() -> dict:
    return {"pid": os.getpid()}


@app.get("/stream")
async def stream() -> StreamingResponse:
    """An event stream that never ends by itself, as FFE's `/api/v1/bot/stream`."""

    async def events():
        number = 0
        while True:
            yield f"data: {number}\n\n"
            number += 1
            await asyncio.sleep(1)

    return StreamingResponse(events(), media_type="text/event-stream")
