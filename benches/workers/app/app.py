"""The application that every server of the comparison runs: it answers its process id, after a while, or blocks for good.

No dependencies: what is measured is the server, and how it handles its workers. But one property of real applications
decides what a roll costs, and is here: importing them takes time (FastAPI with SQLAlchemy about a second).
"""

import asyncio
import os
import time

time.sleep(0.3)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": event + ".complete"})
            if event == "lifespan.shutdown":
                return
    if scope["type"] != "http":
        raise RuntimeError("only http is served here")
    if scope["path"] == "/block":
        while True:
            time.sleep(1)
    if scope["path"].startswith("/slow/"):
        await asyncio.sleep(float(scope["path"][6:]))
    pid = str(os.getpid()).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(pid)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": pid})
