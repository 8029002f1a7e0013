"""Fixtures with pytest-postgresql's names, for tests that were written for it. PYTEST_DONT_REWRITE

The difference: the database is migrated already. Registered where pytest-postgresql is not, so these never take its place.
"""

import importlib.util
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from .fixtures import HARNESS, without_driver
from .harness import failure


@pytest.fixture
def postgresql(database_url):
    """An open connection to a fresh, migrated database: psycopg 3's, or psycopg2's where that alone is installed."""
    connection = connect(without_driver(database_url))
    yield connection
    connection.close()


def connect(url):
    if importlib.util.find_spec("psycopg"):
        import psycopg as driver
    elif importlib.util.find_spec("psycopg2"):
        import psycopg2 as driver
    else:
        raise failure("the fixture postgresql needs psycopg or psycopg2: neither is installed")
    return driver.connect(url)


@pytest.fixture(scope="session")
def postgresql_proc(request):
    """Where the tests' server is: host, port, user, password, options, dbname, version."""
    parts = urlsplit(request.config.stash[HARNESS].session_url())
    return SimpleNamespace(
        host=parts.hostname,
        port=parts.port,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        options="",
        dbname=unquote(parts.path[1:]),
        version="16",
        running=lambda: True,
    )


@pytest.fixture(scope="session")
def postgresql_noproc(postgresql_proc):
    """As postgresql_proc, which starts no process of its own either."""
    return postgresql_proc
