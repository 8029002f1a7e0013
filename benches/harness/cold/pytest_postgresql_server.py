"""pytest-postgresql's server, started and stopped as its `postgresql_proc` fixture does, for one client in between.

python pytest_postgresql_server.py PG_CTL CLIENT…
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from port_for import get_port
from pytest_postgresql.executors import PostgreSQLExecutor

pg_ctl, *client = sys.argv[1:]
with tempfile.TemporaryDirectory() as directory:
    port = get_port(None)
    server = PostgreSQLExecutor(
        executable=pg_ctl,
        host="127.0.0.1",
        port=port,
        dbname="tests",
        datadir=str(Path(directory) / f"data-{port}"),
        unixsocketdir=tempfile.gettempdir(),
        logfile=str(Path(directory) / f"postgresql.{port}.log"),
        startparams="-w",
    )
    server.start()
    server.wait_for_postgres()
    try:
        code = subprocess.call([*client, f"postgresql://postgres@127.0.0.1:{port}/postgres"])
    finally:
        server.stop()
        server.clean_directory()
sys.exit(code)
