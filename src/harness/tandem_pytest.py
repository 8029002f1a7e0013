"""pytest fixtures for tests under `tandem test`: a fresh, migrated PostgreSQL database for each test.

    def test_order(database_url): ...

    database_url_class, database_url_module, database_url_package, database_url_session: one for all tests of the scope

    @pytest.mark.tandem(shared=True)                # only reads: one read-only database for all of these
    def test_report(database_url): ...

    @pytest.mark.usefixtures("database_url")        # TestCase methods take no fixtures: self.database_url
    class TestOrders(unittest.TestCase): ...

Embedded in the binary, and loaded by PYTEST_PLUGINS: nothing is installed. Databases are asked for and given back over
the harness's unix socket, in HTTP/1.1 and JSON:

  TANDEM_TEST_SOCKET    the socket's path
  PGHOST, PGPORT        for the header of pytest's report

Needs Python 3.9 and pytest 7; SQLAlchemy only where `sqlalchemy_engine` is used.
"""

import collections
import contextlib
import http.client
import importlib.util
import json
import os
import unittest
from socket import AF_UNIX, SOCK_STREAM, socket, timeout
from urllib.parse import quote

import pytest

ANSWER_MAX = 120.0  # seconds: a hand-out waits while no database is ready, and Tandem's own limit comes first
NO_HARNESS = "these fixtures need a running harness: start the tests with `tandem test -- pytest …`"
KEPT_HINT = "They are gone once `tandem test` ends, unless it was started with --keep-on-failure or --keep."
ENGINE_SCHEMES = ("postgresql", "postgres")  # those that leave the driver open
ENGINE_DRIVERS = ("psycopg", "psycopg2", "pg8000")

# Taken before any test runs: pytest-socket replaces both `socket.socket` and its `connect` while one does.
connect = socket.connect


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("tandem", timeout=ANSWER_MAX)
        self.path = path

    def connect(self):
        self.sock = socket(AF_UNIX, SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        connect(self.sock, self.path)


class Harness:
    """The harness of this run, as one process sees it. What it cannot do fails the test that asked, in one line."""

    def __init__(self, path):
        # Remembered: a test may clear the environment, and its database must still be given back.
        self.path = path
        self.pid = None
        self.idle = None
        self.kept = []  # [label, url], until a report takes them along

    def expect_tests(self, body=None):
        """Let databases be made while the tests are collected; whoever asks first starts it otherwise."""
        if self.path:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self.exchange("POST", "/fill", json.dumps(body).encode() if body else None)

    def hand_out(self, label, shared=False, lasting=False):
        # A file's name need not be UTF-8, which JSON must be.
        label = label.encode(errors="replace").decode()
        body = {"shared": True} if shared else {"label": label, "lasting": lasting}
        status, answer = self.ask("POST", "/databases", body)
        if status != 200:
            raise refusal(answer)
        return answer

    def give_back(self, name, label, failed):
        path = "/databases/" + quote(name, safe="") + ("?failed=1" if failed else "")
        status, answer = self.ask("DELETE", path)
        # 404: the test gave it back itself, or the answer to our first try was lost.
        if status not in (200, 404):
            raise refusal(answer)
        if answer.get("kept"):
            self.kept.append([label, answer["url"]])

    def ask(self, method, path, body=None):
        if not self.path:
            raise failure(NO_HARNESS)
        try:
            return self.exchange(method, path, json.dumps(body).encode() if body else None)
        except timeout:
            raise failure(f"tandem: no answer to {method} {path} within {ANSWER_MAX:.0f} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise failure(f"{NO_HARNESS} (nobody answers on {self.path}: {words})") from None

    def exchange(self, method, path, body):
        headers = {"Content-Type": "application/json"} if body else {}
        while True:
            connection, reused = self.connection()
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                status, text = response.status, response.read()
            except BaseException as error:
                connection.close()
                if reused and isinstance(error, ConnectionError):
                    continue  # It was closed while idle, which a server may do at any time.
                raise
            self.idle.append(connection)
            answer = json.loads(text)
            if not isinstance(answer, dict):
                raise ValueError(f"{method} {path} was answered with {answer!r}")
            return status, answer

    def connection(self):
        """One that is idle, or a new one: with one thread there is only ever one.

        No lock instead: a thread that waits for a database must not keep another from giving one back.
        """
        if self.pid != os.getpid():
            # After a fork the connections are the parent's: two processes would read each other's answers.
            self.pid, self.idle = os.getpid(), collections.deque()
        try:
            return self.idle.pop(), True
        except IndexError:
            return UnixConnection(self.path), False


def failure(words):
    """What pytest.fail() raises; raised here, it can be told to come without a traceback of what caused it."""
    return pytest.fail.Exception(words, pytrace=False)


def refusal(answer):
    """`{"code": …, "words": […]}`"""
    words = answer.get("words") or [json.dumps(answer)]
    return failure("tandem: " + "\n".join(map(str, words)))


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
    if request.cls is not None and issubclass(request.cls, unittest.TestCase):
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
        words = "is asynchronous, sqlalchemy_engine is not: call create_async_engine(database_url) yourself"
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


def pytest_configure(config):
    words = "tandem(shared=False): with shared=True, database_url is the read-only database that all such tests share"
    config.addinivalue_line("markers", words)
    config.stash[HARNESS] = Harness(os.environ.get("TANDEM_TEST_SOCKET"))
    config.stash[HARNESS].expect_tests()
    if not hasattr(config, "workerinput"):  # xdist's workers print nothing
        config.pluginmanager.register(KeptDatabases(config.stash[HARNESS]), "tandem_kept_databases")


def pytest_collection_finish(session):
    own = [item for item in session.items if "database_url" in getattr(item, "fixturenames", ()) and not is_shared(item)]
    session.config.stash[HARNESS].expect_tests({"tests": len(own)})


def pytest_report_header(config):
    if not config.stash[HARNESS].path:
        return None
    host, port = os.environ.get("PGHOST", "?"), os.environ.get("PGPORT", "?")
    return f"tandem: PostgreSQL at {host}:{port}, a fresh database per test"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    """Fail the collection of a file with a marker that is wrong, as pytest does for one that it does not know.

    A UsageError would be brief too, but in xdist's workers it comes out as an internal error.
    """
    report = (yield).get_result()
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

    def __init__(self, harness):
        self.harness = harness
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
        terminalreporter.write_line(KEPT_HINT)
