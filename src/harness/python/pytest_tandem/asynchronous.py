"""Fixtures for asynchronous tests, under pytest-asyncio and under anyio. PYTEST_DONT_REWRITE"""

import importlib.util

import pytest

from .fixtures import without_driver
from .harness import failure

ASYNCHRONOUS_DRIVERS = ("asyncpg", "psycopg")


@pytest.fixture
def sqlalchemy_async_engine(database_url):
    """An AsyncEngine on the database of database_url.

    It keeps no connection: each is closed in the event loop that opened it, whichever plugin made that loop.
    """
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy.pool import NullPool
    except ImportError as error:
        raise failure(f"sqlalchemy_async_engine needs SQLAlchemy: {error}") from None
    url = make_url(database_url)
    driver = url.drivername.partition("+")[2]
    if driver not in ASYNCHRONOUS_DRIVERS:
        driver = next((name for name in ASYNCHRONOUS_DRIVERS if importlib.util.find_spec(name)), None)
        if driver is None:
            raise failure(f"sqlalchemy_async_engine needs {' or '.join(ASYNCHRONOUS_DRIVERS)}: neither is installed")
    try:
        engine = create_async_engine(url.set(drivername=f"postgresql+{driver}"), poolclass=NullPool)
    except (ImportError, ValueError) as error:  # SQLAlchemy's asyncio needs greenlet
        raise failure(f"sqlalchemy_async_engine cannot use {driver}: {error}") from None
    yield engine


async def _asyncpg_connection(database_url):
    """A connection of asyncpg to the database of database_url."""
    try:
        import asyncpg
    except ImportError as error:
        raise failure(f"asyncpg_connection needs asyncpg: {error}") from None
    connection = await asyncpg.connect(without_driver(database_url))
    yield connection
    await connection.close()


asyncpg_connection = pytest.fixture(name="asyncpg_connection")(_asyncpg_connection)
# pytest-asyncio's own mark, by which it takes a fixture for its own in its strict mode too.
_asyncpg_connection._force_asyncio_fixture = True


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    # Where both plugins are there, the test's own must run it: a connection belongs to one event loop.
    if fixturedef.argname == "asyncpg_connection":
        _asyncpg_connection._force_asyncio_fixture = "anyio_backend" not in request.fixturenames
    yield
