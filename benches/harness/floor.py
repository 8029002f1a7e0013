"""What PostgreSQL itself takes to clone and to drop a database: the least that any harness can do.

python floor.py BIN SCHEMA COUNT

On a server of its own, in memory and without fsync, COUNT databases are cloned and dropped by one client and by four. Prints
a JSON object: by number of clients, how long all and each CREATE DATABASE and DROP DATABASE took, in seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import psycopg2

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "autovacuum": "off",
    "checkpoint_timeout": "1d",
    "max_wal_size": "1GB",
    "wal_level": "replica",
    "max_wal_senders": "0",
    "max_worker_processes": "0",
    "max_logical_replication_workers": "0",
    "bgwriter_lru_maxpages": "0",
    "jit": "off",
}
CLIENTS = (1, 4)


def measure(socket, clients, count):
    """Clone and drop `count` databases by so many `clients` at once."""

    together = Barrier(clients)

    def work(client):
        took = {"create": [], "drop": []}
        ends = []
        with closing(psycopg2.connect(host=socket, user="postgres", dbname="postgres")) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            names = [f"floor_{client}_{number}" for number in range(count // clients)]
            for kind, statement in (
                ("create", "CREATE DATABASE {} TEMPLATE ffe STRATEGY FILE_COPY"),
                ("drop", "DROP DATABASE {}"),
            ):
                together.wait()
                begins = time.monotonic()
                for name in names:
                    before = time.monotonic()
                    cursor.execute(statement.format(name))
                    took[kind].append(time.monotonic() - before)
                ends.append((begins, time.monotonic()))
        return took, ends

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(work, range(clients)))
    result = {}
    for place, kind in enumerate(("create", "drop")):
        began = min(ends[place][0] for _, ends in answers)
        ended = max(ends[place][1] for _, ends in answers)
        result[kind] = {"all": ended - began, "each": [value for took, _ in answers for value in took[kind]]}
    return result


def main():
    programs, schema, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tandem-floor-", dir=where, ignore_cleanup_errors=True) as directory:
        data = f"{directory}/data"
        initdb = [programs / "initdb", "--no-sync", "--wal-segsize=1", "-A", "trust", "-U", "postgres"]
        initdb += ["--locale-provider=libc", "--locale=C.UTF-8", "-D", data]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL)
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        server = subprocess.Popen([programs / "postgres", "-D", data, "-k", directory, *options], stderr=subprocess.DEVNULL)
        try:
            ready = [programs / "pg_isready", "-q", "-h", directory]
            while subprocess.call(ready) != 0:
                if server.poll() is not None:
                    sys.exit(f"the server has ended with {server.returncode}")
                time.sleep(0.01)
            psql = [programs / "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-h", directory, "-U", "postgres"]
            subprocess.run([*psql, "-d", "postgres", "-c", "CREATE DATABASE ffe"], check=True)
            subprocess.run([*psql, "-d", "ffe", "-f", schema], check=True, stdout=subprocess.DEVNULL)
            measure(directory, 1, 8)
            print(json.dumps({clients: measure(directory, clients, count) for clients in CLIENTS}))
        finally:
            server.terminate()
            server.wait()


main()
