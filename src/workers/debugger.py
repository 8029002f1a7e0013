"""What a debugger needs of a worker: the terminal for `breakpoint()`, or a port for an editor.

Loaded by launcher.py. Needs nothing but the standard library; `listen` needs the environment's debugpy.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import time

TERMINAL = "/dev/tty"
PORT_POLL = 0.2  # seconds: a worker that is replaced has the port until it ends
FRONT_POLL = 0.1  # seconds: a terminal whose shell has put Tandem in the background

turn = threading.RLock()  # one breakpoint at a time has the terminal


def set_up(wanted):
    """Make `breakpoint()` work as Tandem says that it can here: `terminal`, a port to listen at, or nothing."""
    if wanted == "terminal":
        # The whole group of this worker is in front during a breakpoint: Ctrl-Z would stop it, and nothing but it.
        signal.signal(signal.SIGTSTP, lambda *_: None)
        if os.environ.get("PYTHONBREAKPOINT", "") in ("", "pdb.set_trace"):
            sys.breakpointhook = stop_here
    elif wanted:
        listen(int(wanted))
    elif "PYTHONBREAKPOINT" not in os.environ:
        sys.breakpointhook = pass_over


def stop_here(*args, **kwargs):
    patch_pdb().Pdb().set_trace(sys._getframe(1))


def patch_pdb():
    """Let whatever is built on pdb have the terminal. Not before the app is imported or asks for it: pdb brings modules with
    common names along, such as `code` and `cmd`."""
    import pdb

    if not hasattr(pdb.Pdb.interaction, "in_front"):
        pdb.Pdb.interaction = in_front(pdb.Pdb.interaction)
    return pdb


def pass_over(*args, **kwargs):
    """No terminal: pdb would read the end of its input at once, and the request would fail with BdbQuit."""
    caller = sys._getframe(1)
    place = (caller.f_code.co_filename, caller.f_lineno)
    if place not in passed:
        passed.add(place)
        text = (
            "WARNING breakpoint() at %s:%d is passed over: it works under `tandem up --reload --workers 1` on a terminal, "
            "and with --attach-debugger"
        )
        print(text % place, file=sys.stderr, flush=True)


passed = set()


def in_front(interaction):
    """pdb's conversation with a person, whoever started it, with the terminal as standard input and output."""

    def wrapped(self, *args, **kwargs):
        with turn, terminal():
            return interaction(self, *args, **kwargs)

    wrapped.in_front = True
    return wrapped


@contextlib.contextmanager
def terminal():
    """This process is in front of the terminal, as a job of a shell is, and gives it back to Tandem at the end."""
    fd = os.open(TERMINAL, os.O_RDWR | os.O_CLOEXEC)
    kept = [os.dup(0), os.dup(1)]
    tandem = os.getpgid(os.getppid())
    flush()
    os.dup2(fd, 0)
    os.dup2(fd, 1)
    interrupt = None
    if threading.current_thread() is threading.main_thread():
        interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while os.tcgetpgrp(fd) not in (tandem, os.getpgrp()):
            time.sleep(FRONT_POLL)
        hand_over(fd, os.getpgrp())
        yield
    finally:
        flush()
        if os.tcgetpgrp(fd) == os.getpgrp():
            hand_over(fd, tandem)
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)
        for number, before in enumerate(kept):
            os.dup2(before, number)
            os.close(before)
        os.close(fd)


def hand_over(fd, group):
    """From the background this raises SIGTTOU, which stops a process that does not block it (tcsetpgrp(3))."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        os.tcsetpgrp(fd, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def flush():
    with contextlib.suppress(Exception):  # the app may have closed or replaced it
        sys.stdout.flush()


def listen(port):
    """Let an editor attach, as soon as the worker before this one has let go of the port."""
    import debugpy

    def wait():
        said = False
        while True:
            try:
                debugpy.listen(("127.0.0.1", port))
                break
            except Exception as error:
                in_use = getattr(error, "errno", None) == errno.EADDRINUSE or "in use" in str(error)
                if not in_use:
                    print("ERROR the debugger cannot listen on 127.0.0.1:%d: %s" % (port, error), file=sys.stderr, flush=True)
                    return
                if not said:
                    said = True
                    print("INFO 127.0.0.1:%d is in use: the debugger waits for it" % port, file=sys.stderr, flush=True)
            time.sleep(PORT_POLL)
        print("INFO a debugger can attach at 127.0.0.1:%d" % port, file=sys.stderr, flush=True)

    threading.Thread(target=wait, name="tandem-debugger", daemon=True).start()
