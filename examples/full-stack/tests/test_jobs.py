import pytest
from fastapi.testclient import TestClient

from app import app
from queue_worker import work


@pytest.fixture
def client(database_url):
    # A fresh, migrated database; DATABASE_URL leads to it as long as the test runs.
    with TestClient(app) as client:
        yield client


def test_the_queue_counts_what_the_page_took(client):
    made = client.post("/api/jobs", json={"text": "one two three"})
    assert (made.status_code, made.json()["words"]) == (201, None)
    assert work(app.state.sessions)
    assert client.get(f"/api/jobs/{made.json()['id']}").json()["words"] == 3
    assert not work(app.state.sessions), "nothing is left"


def test_the_newest_come_first(client):
    for text in ["first", "second"]:
        client.post("/api/jobs", json={"text": text})
    assert [job["text"] for job in client.get("/api/jobs").json()] == ["second", "first"]


def test_the_page_is_served(client):
    answer = client.get("/")
    assert answer.status_code == 200 and "<h1>Word counts</h1>" in answer.text
