"""A database from pytest-postgresql for each test, as its documentation recommends: cloned from a template that is loaded
once a session, with the connection that its fixture brings."""

import os
from pathlib import Path

from ffe import each_test, write_and_count
from pytest_postgresql import factories

ffe_proc = factories.postgresql_proc(load=[Path(os.environ["SCHEMA"])])
ffe = factories.postgresql("ffe_proc")


@each_test
def test_row(ffe, number):
    write_and_count(ffe)
