"""`alembic upgrade head` on a new database for each test, through Alembic's Python interface."""

import os
from contextlib import closing

import psycopg2
import pytest
from alembic import command
from alembic.config import Config
from ffe import each_test, write_and_count
from pytest_postgresql import factories

server = factories.postgresql_proc()


@pytest.fixture
def migrated(server, number):
    def run(sql):
        with closing(psycopg2.connect(host=server.host, port=server.port, user=server.user, dbname="postgres")) as admin:
            admin.autocommit = True
            admin.cursor().execute(sql)

    name = f"test_{number}"
    run(f"CREATE DATABASE {name}")
    url = f"{server.user}@{server.host}:{server.port}/{name}"
    os.environ["DATABASE_URL"] = f"postgresql+psycopg2://{url}"
    command.upgrade(Config(os.environ["ALEMBIC_INI"]), "head")
    yield f"postgresql://{url}"
    run(f"DROP DATABASE {name}")


@each_test
def test_row(migrated, number):
    with closing(psycopg2.connect(migrated)) as connection:
        write_and_count(connection)
