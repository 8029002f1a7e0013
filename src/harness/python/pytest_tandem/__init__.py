"""pytest gives each test a fresh, migrated PostgreSQL database of its own.

    def test_order(database_url): ...

    database_url_class, database_url_module, database_url_package, database_url_session: one for all tests of the scope

    @pytest.mark.tandem(shared=True)                # only reads: one read-only database for all of these
    def test_report(database_url): ...

    @pytest.mark.usefixtures("database_url")        # TestCase methods take no fixtures: self.database_url
    class TestOrders(unittest.TestCase): ...

    sqlalchemy_engine, sqlalchemy_async_engine, asyncpg_connection: ways into the database of database_url
    postgresql, postgresql_proc: as pytest-postgresql has them, where that is not installed

Under `tandem test` the databases come from its harness, which loads this package by PYTEST_PLUGINS. A pytest that was
started by itself loads it by the wheel's entry point, and starts the harness (`starting`):

  in a project of Tandem, before a conftest is imported: an application that reads DATABASE_URL as it is imported must not
  find the live database there. While tests are only collected no server is started, and the variables name none;

  elsewhere when a test asks for one of the fixtures.

`-p no:tandem`, or `tandem = false` in pytest's configuration, leaves all of it out.

Needs Python 3.9 and pytest 7. It is imported by every pytest of its environment: what is slow to import is imported where
it is used. PYTEST_DONT_REWRITE
"""

import os
import re

import pytest

from .asynchronous import asyncpg_connection, pytest_fixture_setup, sqlalchemy_async_engine  # noqa: F401
from .fixtures import (  # noqa: F401
    HARNESS,
    database_url,
    database_url_class,
    database_url_module,
    database_url_package,
    database_url_session,
    pytest_collection_finish,
    pytest_make_collect_report,
    pytest_report_header,
    pytest_runtest_makereport,
    set_up,
    sqlalchemy_engine,
)

CONFIGURATIONS = ("tandem.toml", os.path.join("config", "tandem.toml"))
TABLE = re.compile(r"^\s*\[\s*tool\s*\.\s*tandem\s*[].]", re.MULTILINE)
OFF = ("false", "off", "no", "0")
# Options with which pytest runs no test.
ONLY_LOOKS = ("collectonly", "help", "version", "showfixtures", "show_fixtures_per_test", "markers", "cacheshow", "setupplan")
# The names under which pytest-postgresql may have been loaded, whose fixtures are its own.
PYTEST_POSTGRESQL = ("pytest_postgresql", "pytest_postgresql.plugin", "pytest-postgresql")


def pytest_addoption(parser):
    group = parser.getgroup("tandem", "databases for tests (Tandem)")
    words = "keep the server with the databases of failed tests running when pytest ends"
    group.addoption("--tandem-keep", action="store_true", help=words)
    words = "false: a pytest without `tandem test` starts no PostgreSQL for its tests; always: also while it only collects them"
    parser.addini("tandem", words, default="true")


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config):
    # A wrapper: it comes before all that may import the application, pytest-django's hook and the conftests included.
    wanted = str(early_config.getini("tandem")).lower()
    if not os.environ.get("TANDEM_TEST_SOCKET") and wanted not in OFF:
        project = project_of(early_config)
        if project:
            from . import starting

            options = early_config.known_args_namespace
            collects = wanted != "always" and any(getattr(options, name, False) for name in ONLY_LOOKS)
            starting.start(early_config, project, collects)
    yield


def project_of(config):
    """The project of Tandem that the tests belong to, if they belong to one."""
    started_in = str(config.invocation_params.dir)
    if os.environ.get("TANDEM_CONFIG"):
        return started_in
    named = config.known_args_namespace.file_or_dir or config.getini("testpaths")
    paths = (os.path.join(started_in, name.split("::", 1)[0]) for name in map(str, named))
    found = {}
    for path in filter(os.path.exists, paths):
        directory = above(path)
        if directory:
            found.setdefault(directory, path)
    if len(found) > 1:
        raise pytest.UsageError(f"these tests belong to several projects of Tandem, which run one by one: {', '.join(found)}")
    return next(iter(found), None) or above(started_in) or above(str(config.rootpath))


def above(path):
    """The nearest project of Tandem from `path` upwards, as Tandem itself looks for one.

    Not past the user's home or the file system, and none that another user could have put there: what its configuration
    says is run.
    """
    start = directory = os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))
    home, device = os.path.expanduser("~"), os.stat(start).st_dev
    while True:
        named = named_in(directory)
        if named:
            own = directory == start or not (is_open_to_others(directory) or is_open_to_others(named))
            return directory if own else None
        parent = os.path.dirname(directory)
        if parent == directory or directory == home or os.stat(parent).st_dev != device:
            return None
        directory = parent


def named_in(directory):
    """What makes `directory` a project of Tandem: a configuration, or that Tandem ran in it."""
    for name in CONFIGURATIONS:
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            return path
    path = os.path.join(directory, "pyproject.toml")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            if TABLE.search(file.read()):
                return path
    except OSError:
        pass
    state = os.path.join(directory, ".tandem")
    return state if os.path.isdir(os.path.join(state, "run")) else None


def is_open_to_others(path):
    """Whether somebody could change it who is neither this user nor root."""
    about = os.stat(path)
    return about.st_uid not in (os.geteuid(), 0) or bool(about.st_mode & 0o002)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    set_up(config)
    if not any(config.pluginmanager.hasplugin(name) for name in PYTEST_POSTGRESQL):
        from . import postgresql

        config.pluginmanager.register(postgresql, "tandem_postgresql")


def pytest_sessionfinish(session, exitstatus):
    session.config.stash[HARNESS].failed = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
