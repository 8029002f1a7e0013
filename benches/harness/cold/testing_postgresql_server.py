"""testing.postgresql's server, for one client.

python testing_postgresql_server.py BIN CLIENT…
"""

import subprocess
import sys
from pathlib import Path

from testing.postgresql import Postgresql

directory, *client = sys.argv[1:]
programs = {name: str(Path(directory) / name) for name in ("initdb", "postgres")}
with Postgresql(**programs) as server:
    code = subprocess.call([*client, server.url()])
sys.exit(code)
