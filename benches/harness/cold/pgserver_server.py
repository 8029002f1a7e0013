"""pgserver's server, on the PostgreSQL that comes in its package, for one client.

python pgserver_server.py CLIENT…
"""

import subprocess
import sys
import tempfile

import pgserver

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    with pgserver.get_server(f"{directory}/data", cleanup_mode="delete") as server:
        code = subprocess.call([*sys.argv[1:], server.get_uri()])
sys.exit(code)
