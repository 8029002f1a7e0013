"""A database from Tandem for each test."""

from contextlib import closing

import psycopg2
from ffe import each_test, write_and_count


@each_test
def test_row(database_url, number):
    with closing(psycopg2.connect(database_url.replace("+psycopg2", "", 1))) as connection:
        write_and_count(connection)
