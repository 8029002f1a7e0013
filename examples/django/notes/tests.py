from django.test import TestCase


class Notes(TestCase):
    def test_a_note_is_kept(self):
        made = self.client.post("/notes", {"text": "milk"}, content_type="application/json")
        self.assertEqual(made.status_code, 201)
        read = self.client.get(f"/notes/{made.json()['id']}")
        self.assertEqual(read.json()["text"], "milk")
        self.assertEqual(self.client.get("/").json(), {"notes": ["milk"]})

    def test_each_test_begins_anew(self):
        self.assertEqual(self.client.get("/").json(), {"notes": []})
        self.assertEqual(self.client.get("/notes/1").status_code, 404)

    def test_an_empty_note_is_refused(self):
        made = self.client.post("/notes", {"text": ""}, content_type="application/json")
        self.assertEqual(made.status_code, 422)
