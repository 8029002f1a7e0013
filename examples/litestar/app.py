"""Notes, with Litestar and asyncpg, in plain SQL."""

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from litestar import Litestar, get, post
from litestar.datastructures import State
from litestar.exceptions import NotFoundException


@dataclass
class NewNote:
    text: str


@dataclass
class Note:
    id: int
    text: str


@asynccontextmanager
async def pool(app: Litestar):
    # DB_POOL_SIZE is what Tandem counts the server's connections by.
    size = int(os.environ.get("DB_POOL_SIZE", "5"))
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=size) as made:
        app.state.pool = made
        yield


@get("/")
async def root(state: State) -> dict:
    rows = await state.pool.fetch("SELECT text FROM notes ORDER BY id")
    return {"notes": [row["text"] for row in rows], "docs": "/schema"}


@post("/notes")
async def create(data: NewNote, state: State) -> Note:
    row = await state.pool.fetchrow("INSERT INTO notes (text) VALUES ($1) RETURNING id, text", data.text)
    return Note(**row)


@get("/notes/{note_id:int}")
async def read(note_id: int, state: State) -> Note:
    row = await state.pool.fetchrow("SELECT id, text FROM notes WHERE id = $1", note_id)
    if row is None:
        raise NotFoundException("no such note")
    return Note(**row)


app = Litestar([root, create, read], lifespan=[pool])
