"""Starts the harness for a pytest that `tandem test` did not start. PYTEST_DONT_REWRITE

    pytest                                      tandem test --serve PID
      starts it, reads one line of JSON      <─   the environment of the tests, with the address of their server
      sets the variables, imports the conftests, runs the tests
      says `failed`, closes the pipe          ─>  ends; a pytest that is killed closes the pipe too

xdist's workers inherit the variables, TANDEM_TEST_SOCKET among them, and start nothing.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest

PROTOCOL = 1
SOCKET = "TANDEM_TEST_SOCKET"
END_MAX = 10.0  # seconds: all that is slow about an end is done by others, in the background
WITHOUT = "To run the tests without Tandem, in the environment as it is: pytest -p no:tandem"

# What this process had in the variables that were changed, and what was put there: a second `pytest.main()` starts anew.
changed = {}


def start(config, project, collects=False):
    """Start it for the tests of `config`, in the directory `project`, and take its environment over; its socket."""
    command = [program(), "test", "--serve", str(os.getpid()), *python()]
    if collects:
        command.append("--collects")
    if getattr(config.known_args_namespace, "tandem_keep", False):
        command.append("--keep-on-failure")
    try:
        # A session of its own: Ctrl-C is for pytest, whose tests still give their databases back then.
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=project, env=own_environment(), stdin=pipe, stdout=pipe, start_new_session=True
        )
    except OSError as error:
        raise pytest.UsageError(f"{command[0]} cannot be started: {error}\n{WITHOUT}") from None
    try:
        offer = understand(process.stdout.readline(), command[0])
    except BaseException:
        end(process)
        raise
    take_over(offer["environment"])
    # Before the tests' own clean-up is over they may give back a database: what is added first goes last.
    config.add_cleanup(lambda: finish(config, process))
    return os.environ.get(SOCKET)


def program():
    """This environment's own, else the one in PATH."""
    own = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    found = shutil.which("tandem", path=os.pathsep.join([*own, os.environ.get("PATH", os.defpath)]))
    if not found:
        words = "tandem is neither in this Python environment nor in PATH, and the tests of this project get their PostgreSQL from it"
        raise pytest.UsageError(f"{words}.\n{WITHOUT}")
    return found


def python():
    """The environment that runs the tests is the one for migrations and seeds, and decides on the driver in DATABASE_URL."""
    is_own = sys.prefix != sys.base_prefix or os.environ.get("CONDA_PREFIX") == sys.prefix
    if not is_own or not os.path.isfile(os.path.join(sys.prefix, "bin", "python")):
        return []
    return ["--set", f"python.venv={sys.prefix}", "--set", "python.managed=false"]


def understand(line, program):
    try:
        offer = json.loads(line)
        protocol = offer["protocol"]
    except (ValueError, TypeError, KeyError):
        # What it says of itself stands on standard error.
        words = f"{program} did not start a server for the tests: is it a Tandem as new as its pytest plugin?"
        raise pytest.UsageError(f"{words}\n{WITHOUT}") from None
    if protocol != PROTOCOL:
        raise pytest.UsageError(f"{program} and its pytest plugin are of different versions: install both anew\n{WITHOUT}")
    if "refused" in offer:
        raise pytest.UsageError(f"tandem: {offer['refused']}\n{WITHOUT}")
    return offer


def take_over(environment):
    for name, value in environment.items():
        # What was there before all of it, should there be a second time.
        before = changed[name][0] if name in changed else os.environ.get(name)
        changed[name] = (before, value)
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # For this process PYTHONPATH comes too late.
    for entry in reversed((environment.get("PYTHONPATH") or "").split(os.pathsep)):
        if entry and entry not in sys.path and entry != os.getcwd():
            sys.path.insert(0, entry)


def own_environment():
    """As it was before an earlier harness changed it."""
    environment = dict(os.environ)
    for name, (before, ours) in changed.items():
        if environment.get(name) == ours:
            environment.pop(name, None)
            if before is not None:
                environment[name] = before
    return environment


def finish(config, process):
    """Give it back. The addresses stay where they are: what still runs in this process must not find the live database."""
    from .fixtures import HARNESS

    harness = config.stash.get(HARNESS, None)
    if harness is not None and harness.failed:
        with contextlib.suppress(OSError):
            process.stdin.write(b"failed\n")
    os.environ.pop(SOCKET, None)
    end(process)


def end(process):
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(END_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
