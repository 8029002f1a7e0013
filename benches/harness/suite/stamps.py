"""A pytest plugin that notes when each test begins, has its fixtures, and ends, in every xdist worker.

A test begins when the fixtures of the session are there, such as a server, and ends before they go. Each process leaves
its notes in the directory $STAMPS: a JSON list of [begin, call, end], in seconds of the machine's monotonic clock.
"""

import json
import os
import time
from pathlib import Path

import pytest

stamps = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    stamps.append([time.monotonic()] * 3)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    try:
        return (yield)
    finally:
        if fixturedef.scope == "session" and stamps:
            stamps[-1][0] = time.monotonic()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item):
    stamps[-1][1] = time.monotonic()
    try:
        return (yield)
    finally:
        stamps[-1][2] = time.monotonic()


def pytest_fixture_post_finalizer(fixturedef, request):
    if fixturedef.scope == "function" and stamps:
        stamps[-1][2] = time.monotonic()


def pytest_sessionfinish(session):
    if stamps:
        Path(os.environ["STAMPS"], f"{os.getpid()}.json").write_text(json.dumps(stamps))
