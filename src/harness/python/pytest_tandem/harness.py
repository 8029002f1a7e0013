"""The harness, as one process of the tests sees it. PYTEST_DONT_REWRITE

Databases are asked for and given back over the harness's unix socket (TANDEM_TEST_SOCKET), in HTTP/1.1 and JSON.
"""

import collections
import contextlib
import json
import os
import threading
from socket import AF_UNIX, SOCK_STREAM, socket, timeout
from urllib.parse import quote

import pytest

ANSWER_MAX = 120.0  # seconds: a hand-out waits while no database is ready, and Tandem's own limit comes first
NO_HARNESS = "these fixtures need a running harness: start the tests with `tandem test -- pytest …`"

# Taken before any test runs: pytest-socket replaces both `socket.socket` and its `connect` while one does.
connect = socket.connect


def connection_to(path):
    import http.client  # brings ssl with it: only who asks for a database pays for it

    class UnixConnection(http.client.HTTPConnection):
        def connect(self):
            self.sock = socket(AF_UNIX, SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            connect(self.sock, path)

    return UnixConnection("tandem", timeout=ANSWER_MAX)


def mishaps():
    import http.client

    return (OSError, http.client.HTTPException, ValueError)


class Harness:
    """What it cannot do fails the test that asked, in one line."""

    def __init__(self, path, start):
        # Remembered: a test may clear the environment, and its database must still be given back.
        self.path = path
        self.start = start  # starts a harness, for tests outside of a project of Tandem
        self.starting = threading.Lock()
        self.pid = None
        self.idle = None
        self.kept = []  # [label, url], until a report takes them along
        self.failed = False

    def expect_tests(self, body=None):
        """Let databases be made while the tests are collected; whoever asks first starts it otherwise."""
        if self.path:
            with contextlib.suppress(*mishaps()):
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

    def session_url(self):
        """Of the database that is nobody's own."""
        status, answer = self.ask("GET", "/status")
        if status != 200:
            raise refusal(answer)
        return answer["url"]

    def ask(self, method, path, body=None):
        with self.starting:
            if not self.path:
                self.path = self.start()
        try:
            return self.exchange(method, path, json.dumps(body).encode() if body else None)
        except timeout:
            raise failure(f"tandem: no answer to {method} {path} within {ANSWER_MAX:.0f} s") from None
        except mishaps() as error:
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
            return connection_to(self.path), False


def failure(words):
    """What pytest.fail() raises; raised here, it can be told to come without a traceback of what caused it."""
    return pytest.fail.Exception(words, pytrace=False)


def refusal(answer):
    """`{"code": …, "words": […]}`"""
    words = answer.get("words") or [json.dumps(answer)]
    return failure("tandem: " + "\n".join(map(str, words)))
