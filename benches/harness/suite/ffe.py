"""What every test of this benchmark does, and how many there are."""

import os

import pytest

each_test = pytest.mark.parametrize("number", range(int(os.environ.get("TESTS", "1"))))


def write_and_count(connection):
    """Write one row into a table that must be empty."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO api_keys (id, name, key_hash) VALUES ('1', 'one', 'digest')")
        cursor.execute("SELECT count(*) FROM api_keys")
        assert cursor.fetchone() == (1,)
    connection.commit()
