"""How long a database takes to be handed out, as a test in Python sees it.

tandem test -- python handout.py COUNT POOL BATCH REST

Waits each time until POOL databases are ready, and REST seconds for what goes on behind them, takes BATCH of them in a row,
gives them back, and goes on until COUNT were taken.
Prints a JSON list of seconds: how long each `POST /databases` took.
"""

import http.client
import json
import os
import socket
import sys
import time


class Harness(http.client.HTTPConnection):
    """Tandem's unix socket."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["TANDEM_TEST_SOCKET"])

    def ask(self, method, path, body=None):
        self.request(method, path, body, {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        if answer.status != 200:
            sys.exit(f"{method} {path}: {answer.status} {text!r}")
        return json.loads(text)


count, pool, batch, rest = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
harness = Harness("tandem")
took = []
# A pool need not fill before somebody has asked once.
harness.ask("DELETE", f"/databases/{harness.ask('POST', '/databases', '{}')['name']}")
while len(took) < count:
    limit = time.monotonic() + 30
    while harness.ask("GET", "/status")["ready"] < pool:
        if time.monotonic() > limit:
            sys.exit("the pool does not fill")
        time.sleep(0.005)
    time.sleep(rest)
    names = []
    for _turn in range(batch):
        before = time.monotonic()
        answer = harness.ask("POST", "/databases", "{}")
        took.append(time.monotonic() - before)
        names.append(answer["name"])
    for name in names:
        harness.ask("DELETE", f"/databases/{name}")
print(json.dumps(took))
