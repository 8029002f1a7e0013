"""Counts words: a page takes a text, a table keeps it, a process beside the workers counts."""

import os
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from sqlalchemy import select

from model import Job, open_sessions


class NewJob(BaseModel):
    text: str = Field(min_length=1, max_length=2000)


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.sessions = open_sessions(int(os.environ.get("DB_POOL_SIZE", "5")))
    yield
    app.state.sessions.kw["bind"].dispose()


app = FastAPI(title="Word counts", lifespan=lifespan)


def as_json(job):
    return {"id": job.id, "text": job.text, "words": job.words}


# Plain functions: FastAPI runs them in its thread pool, where psycopg may block.
@app.get("/api/jobs")
def newest(request: Request):
    with request.app.state.sessions() as session:
        return [as_json(job) for job in session.scalars(select(Job).order_by(Job.id.desc()).limit(20))]


@app.post("/api/jobs", status_code=201)
def create(new: NewJob, request: Request):
    with request.app.state.sessions.begin() as session:
        job = Job(text=new.text)
        session.add(job)
    return as_json(job)


@app.get("/api/jobs/{job_id}")
def read(job_id: int, request: Request):
    with request.app.state.sessions() as session:
        job = session.get(Job, job_id)
    if job is None:
        raise HTTPException(404, "no such job")
    return as_json(job)


app.mount("/", StaticFiles(directory=Path(__file__).parent / "static", html=True))
