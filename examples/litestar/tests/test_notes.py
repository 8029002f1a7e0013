import pytest
from litestar.testing import TestClient

from app import app


@pytest.fixture
def client(database_url):
    # A fresh, migrated database; DATABASE_URL leads to it as long as the test runs.
    with TestClient(app=app) as client:
        yield client


def test_a_note_is_kept(client):
    made = client.post("/notes", json={"text": "milk"})
    assert made.status_code == 201
    assert client.get(f"/notes/{made.json()['id']}").json()["text"] == "milk"
    assert client.get("/").json()["notes"] == ["milk"]


def test_each_test_has_a_database_of_its_own(client):
    assert client.get("/").json()["notes"] == []
    assert client.get("/notes/1").status_code == 404
