"""Notes, with FastAPI, SQLAlchemy's asyncio and asyncpg. Tandem sets DATABASE_URL, in the form that asyncpg wants."""

import os
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(200))


class NewNote(BaseModel):
    text: str = Field(min_length=1, max_length=200)


@asynccontextmanager
async def lifespan(app: FastAPI):
    engine = create_async_engine(
        os.environ["DATABASE_URL"],
        # What Tandem counts the server's connections by.
        pool_size=int(os.environ.get("DB_POOL_SIZE", "5")),
        max_overflow=int(os.environ.get("DB_POOL_OVERFLOW", "5")),
        pool_pre_ping=True,
    )
    app.state.session = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


app = FastAPI(title="Notes", lifespan=lifespan)


@app.get("/")
async def root(request: Request):
    async with request.app.state.session() as session:
        notes = (await session.scalars(select(Note).order_by(Note.id))).all()
    return {"notes": [note.text for note in notes], "docs": "/docs"}


@app.post("/notes", status_code=201)
async def create(new: NewNote, request: Request):
    async with request.app.state.session.begin() as session:
        note = Note(text=new.text)
        session.add(note)
    return {"id": note.id, "text": note.text}


@app.get("/notes/{note_id}")
async def read(note_id: int, request: Request):
    async with request.app.state.session() as session:
        note = await session.get(Note, note_id)
    if note is None:
        raise HTTPException(404, "no such note")
    return {"id": note.id, "text": note.text}
