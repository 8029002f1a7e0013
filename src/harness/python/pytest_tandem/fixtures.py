"""The fixtures, and what the reports say of their databases. PYTEST_DONT_REWRITE"""

import importlib.util
import os
import sys

import pytest

from .harness import NO_HARNESS, Harness, failure

KEPT_HINTS = {
    "command": "They are gone once `tandem test` ends, unless it was started with --keep-on-failure or --keep.",
    "own": "They are gone now, with their server: `pytest --tandem-keep` keeps both.",
    "kept": "Their server stays; below stands how to open them.",
}
ENGINE_SCHEMES = ("postgresql", "postgres")  # those that leave the driver open
ENGINE_DRIVERS = ("psycopg", "psycopg2", "pg8000")

HARNESS = pytest.StashKey()
FAILED = pytest.StashKey()
LASTING = "database_url_"
# The nodes that fixtures of a scope belong to; a package's may be that of a directory above.
SCOPES = {
    "class": pytest.Class,
    "module": pytest.Module,
    "package": (pytest.Package, pytest.Session),
    "session": pytest.Session,
}


@pytest.fixture
def database_url(request, monkeypatch):
    """URL of a fresh, migrated PostgreSQL database, this test's own; a failed test's database is kept.

    With @pytest.mark.tandem(shared=True) that of the read-only database which all such tests share. While the test
    runs, DATABASE_URL and PGDATABASE name the database too, and a TestCase finds the URL in self.database_url.
    """
    harness, item = request.config.stash[HARNESS], request.node
    shared = is_shared(item)
    database = harness.hand_out(item.nodeid, shared)
    # The test's own monkeypatch, not one of ours: undone one after the other, two would put back each other's values.
    monkeypatch.setenv("DATABASE_URL", database["url"])
    monkeypatch.setenv("PGDATABASE", database["name"])
    unittest = sys.modules.get("unittest")  # whoever has a TestCase has imported it
    if request.cls is not None and unittest and issubclass(request.cls, unittest.TestCase):
        owner = request.cls if request.instance is None else request.instance
        monkeypatch.setattr(owner, "database_url", database["url"], raising=False)
    yield database["url"]
    if not shared:
        harness.give_back(database["name"], item.nodeid, item.stash.get(FAILED, False))


def is_shared(item):
    marker = item.get_closest_marker("tandem")
    return marker is not None and marker.kwargs.get("shared", False)


def lasting(scope, words):
    """A fixture for one database that all tests of `scope` use, one after the other."""

    def database(request):
        harness = request.config.stash[HARNESS]
        label = f"{request.fixturename} of {request.node.nodeid}" if request.node.nodeid else request.fixturename
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        label = f"{label} in {worker}" if worker else label
        database = harness.hand_out(label, lasting=True)
        yield database["url"]
        harness.give_back(database["name"], label, request.node.stash.get(FAILED, False))

    database.__doc__ = f"URL of a migrated PostgreSQL database for {words}; under pytest-xdist each worker has one."
    return pytest.fixture(scope=scope, name=f"{LASTING}{scope}")(database)


database_url_class = lasting("class", "all tests of a class")
database_url_module = lasting("module", "all tests of a file")
database_url_package = lasting("package", "all tests of a directory")
database_url_session = lasting("session", "the whole session")


@pytest.fixture
def sqlalchemy_engine(database_url):
    """A SQLAlchemy engine on the database of database_url, disposed before the database is given back."""
    try:
        import sqlalchemy
    except ImportError as error:
        raise failure(f"sqlalchemy_engine needs SQLAlchemy: {error}") from None
    url = sqlalchemy.engine.make_url(database_url)
    try:
        url = with_driver(url)
        asynchronous = getattr(url.get_dialect(), "is_async", False)
        engine = None if asynchronous else sqlalchemy.create_engine(url)
    except (ImportError, sqlalchemy.exc.ArgumentError) as error:
        raise failure(f"sqlalchemy_engine cannot use {url.drivername}: {error}") from None
    if asynchronous:
        words = "is asynchronous, sqlalchemy_engine is not: ask for sqlalchemy_async_engine"
        raise failure(f"{url.drivername} {words}")
    yield engine
    engine.dispose()


def with_driver(url):
    """SQLAlchemy's default driver where it is installed, else another: the default became psycopg with 2.1."""
    if url.drivername not in ENGINE_SCHEMES:
        return url
    url = url.set(drivername="postgresql")  # SQLAlchemy refuses libpq's other name for it
    for driver in (url.get_dialect().driver, *ENGINE_DRIVERS):
        if importlib.util.find_spec(driver):
            return url.set(drivername=f"postgresql+{driver}")
    return url


def without_driver(url):
    """As drivers themselves read it: `postgresql+psycopg2` is SQLAlchemy's language."""
    scheme, separator, rest = url.partition("://")
    return scheme.partition("+")[0] + separator + rest


def set_up(config):
    words = "tandem(shared=False): with shared=True, database_url is the read-only database that all such tests share"
    config.addinivalue_line("markers", words)
    harness = Harness(os.environ.get("TANDEM_TEST_SOCKET"), lambda: start_late(config))
    config.stash[HARNESS] = harness
    harness.expect_tests()
    if not hasattr(config, "workerinput"):  # xdist's workers print nothing
        config.pluginmanager.register(KeptDatabases(harness, config), "tandem_kept_databases")


def start_late(config):
    """For a test outside of a project of Tandem that asks for a fixture all the same."""
    from . import OFF, starting

    if str(config.getini("tandem")).lower() in OFF:
        raise failure(NO_HARNESS)
    try:
        return starting.start(config, str(config.invocation_params.dir))
    except pytest.UsageError as error:
        raise failure(str(error)) from None


def pytest_collection_finish(session):
    own = [item for item in session.items if "database_url" in getattr(item, "fixturenames", ()) and not is_shared(item)]
    session.config.stash[HARNESS].expect_tests({"tests": len(own)})


def pytest_report_header(config):
    if not config.stash[HARNESS].path:
        return None
    host, port = os.environ.get("PGHOST", "?"), os.environ.get("PGPORT", "?")
    return f"tandem: PostgreSQL at {host}:{port}, a fresh database per test"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Fail the collection of a file with a marker that is wrong, as pytest does for one that it does not know.

    A UsageError would be brief too, but in xdist's workers it comes out as an internal error.
    """
    report = (yield).get_result()
    if not collector.config.stash[HARNESS].path:
        return  # the marker may be another program's
    items = [item for item in report.result or () if isinstance(item, pytest.Item)]
    wrong = [words for item in items for words in what_is_wrong(item)]
    if wrong:
        report.outcome, report.longrepr, report.result = "failed", "\n".join(wrong), []


def what_is_wrong(item):
    """With the item's markers, for a person."""
    for marker in item.iter_markers("tandem"):
        wrong = [repr(value) for value in marker.args]
        for name, value in marker.kwargs.items():
            if name != "shared" or not isinstance(value, bool):
                wrong.append(f"{name}={value!r}")
        if wrong:
            yield f"{item.nodeid}: @pytest.mark.tandem({', '.join(wrong)}): the only argument is shared=True, or False"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item):
    """Tell the fixtures whether their test failed, and have the report say what was kept, across processes too."""
    report = (yield).get_result()
    harness = item.config.stash[HARNESS]
    if report.when == "teardown":
        report.tandem_kept, harness.kept = harness.kept, []
        return
    # A rerun of the test begins anew; subtests are reported one by one.
    failed = report.failed or (report.when == "call" and item.stash.get(FAILED, False))
    item.stash[FAILED] = failed
    for name in getattr(item, "fixturenames", ()) if failed else ():
        scope = name[len(LASTING) :] if name.startswith(LASTING) else None
        for node in item.listchain():
            if scope in SCOPES and isinstance(node, SCOPES[scope]):
                node.stash[FAILED] = True


class KeptDatabases:
    """Says which databases were kept, in the process that reports: its own, and those of xdist's workers."""

    def __init__(self, harness, config):
        self.harness = harness
        self.config = config
        self.failed = {}
        self.kept = []

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        # The database is given back after the failure has been reported: the section goes where that is kept to be
        # printed at the end. Several workers may run the same test, with --dist=each.
        run = (report.nodeid, getattr(report, "node", None))
        if report.when != "teardown":
            if report.failed:
                self.failed[run] = report
            return
        failed = self.failed.pop(run, None)
        for label, url in getattr(report, "tandem_kept", ()):
            self.kept.append((label, url))
            if failed is not None and label == report.nodeid:  # else it is the session's, of other tests too
                failed.sections.append(("tandem", f"database kept: {url}"))

    def pytest_terminal_summary(self, terminalreporter):
        kept = self.kept + self.harness.kept  # an interrupted run has no last report to take them
        if not kept:
            return
        terminalreporter.write_sep("=", "databases kept by tandem")
        for label, url in kept:
            terminalreporter.write_line(f"{label}\n    {url}")
        terminalreporter.write_line(KEPT_HINTS[self.whose()])

    def whose(self):
        starting = sys.modules.get(f"{__package__}.starting")
        if not starting or not starting.changed:
            return "command"
        return "kept" if self.config.getoption("tandem_keep") else "own"
