"""Run one ASGI app with Uvicorn on a listening socket that Tandem opened, and tell Tandem how it goes.

Embedded in the binary, written into the run directory, started as `python launcher.py`. Needs nothing but the
standard library and the app's own Uvicorn (0.22 or newer, Python 3.8 or newer).

Told by the environment (every name here is taken out of it, so that a child of the app cannot speak for the worker;
TANDEM_WORKER_SLOT, which is not ours, stays for the app):

  TANDEM_APP          module:attribute
  TANDEM_APP_DIR      first entry of sys.path once the libraries are imported, as with Uvicorn's command
  TANDEM_LISTEN_FD    the inherited listening sockets, comma separated
  TANDEM_GATE_FD      read end of a pipe of this worker's own: a byte means "import the app now"; its end means
                      that Tandem is gone, before and after that byte
  TANDEM_PREIMPORT    modules, comma separated, to import while waiting at the gate
  TANDEM_UVICORN      Uvicorn's own options and TLS, as options.py reads them
  TANDEM_LOOP         auto | asyncio | uvloop
  TANDEM_ACCESS_LOG   1 | 0
  TANDEM_GRACE        seconds that requests in flight get after SIGTERM; what is left then is cut
  TANDEM_IDLE_DRAIN   seconds that an idle keep-alive connection stays open after SIGTERM
  TANDEM_DRAIN        seconds that an idle connection stays open after SIGWINCH
  TANDEM_DRAIN_BUSY   seconds that requests in flight get after SIGWINCH, or "inf"
  TANDEM_DRAIN_STREAMS  the same for WebSockets and event streams
  TANDEM_FACTORY      auto | yes | no: whether TANDEM_APP makes the application
  TANDEM_LIFESPAN     auto | on | off
  TANDEM_INTERFACE    auto | asgi3 | asgi2 | wsgi
  TANDEM_CHECK        a path that must be answered well before the socket is served; or empty
  TANDEM_DEBUGGER     terminal: breakpoint() gets the terminal; a number: debugpy listens at that port
  TANDEM_NOTIFY_FD    this worker's own end of a datagram socket pair; Tandem hears no other process there
  WATCHDOG_USEC       as in sd_notify(3)

Says, one datagram each:

  READY=1                          the app's startup succeeded and the socket is being served
  WATCHDOG=1 + X_TANDEM_* counts   the event loop turns; without WATCHDOG_USEC the counts alone, once a second.
                                   The first comes after READY=1: an app may take its time to start
  STOPPING=1                       first thing of a shutdown
  X_TANDEM_CLOSED=1                no connection is accepted any more
  X_TANDEM_DRAINING=<json>         from then on, beside the counts: what is still to be finished
  X_TANDEM_DRAINED=1               every request has had its answer; the app's own shutdown follows
  X_TANDEM_IMPORT_ERROR=<json>     the traceback, without our frames; at most 32 KB
  X_TANDEM_LIFESPAN_ERROR=<json>   the same for the app's startup
  X_TANDEM_CHECK_ERROR=<json>      how TANDEM_CHECK was answered

Hears, from READY=1 on, one datagram each: RETIRE and STOP, which mean what SIGWINCH and SIGTERM do. A worker whose app
has taken a signal for itself still hears them.

Signals, from READY=1 on (drain.py says what they mean for clients):

  SIGWINCH            retire: a replacement serves already. Ignored before READY=1
  SIGTERM, SIGINT     stop; a retiring worker becomes a stopping one. A second one cuts what is left at once
  SIGABRT             the stacks of all threads on standard error, then the end

Exit status: 0 after a stop as asked and when Tandem went away before the gate opened; 1 when the app closed the
listening socket; 3 when the app could not be imported or its startup failed (the same code will fail again); 143 when
SIGTERM comes before Uvicorn serves: the app's startup is cancelled then.
"""

import asyncio
import faulthandler
import fcntl
import gc
import importlib
import importlib.machinery
import json
import os
import select
import signal
import sys
import traceback
import types
from collections import namedtuple

STARTUP_FAILED = 3  # Uvicorn's own status for it
SOCKET_LOST = 1
RUN_DIR = os.path.dirname(os.path.abspath(__file__))
COUNTS_PERIOD = 1.0  # seconds: without a watchdog

LOG_CONFIG = {
    # No colours and no time: Tandem reads these lines and adds its own.
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(levelname)s %(message)s"}, "access": {"format": "%(message)s"}},
    "handlers": {
        "plain": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"},
        "access": {"class": "logging.StreamHandler", "formatter": "access", "stream": "ext://sys.stderr"},
    },
    "loggers": {
        "uvicorn": {"handlers": ["plain"], "level": "INFO", "propagate": False},
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
    },
}

Orders = namedtuple(
    "Orders",
    "app app_dir listen_fds uvicorn gate_fd notify_fd preimport loop access_log grace idle_drain watchdog drain debugger"
    " drain_busy drain_streams factory lifespan interface check",
)


def load_sibling(name):
    """A file of ours from beside this one. Not an import: the app may have a module of that name, and Python would
    write byte code into the run directory."""
    path = os.path.join(RUN_DIR, name + ".py")
    module = types.ModuleType("tandem_" + name)
    module.__file__ = path
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), vars(module))
    return module


drain = load_sibling("drain")
startup = load_sibling("startup")
debugger = load_sibling("debugger")
listening = load_sibling("listening")
notify = load_sibling("notify")
options = load_sibling("options")
Notifier, tell, NOTIFY_PATIENCE = notify.Notifier, notify.tell, notify.PATIENCE


def read_orders():
    """Take Tandem's variables out of the environment."""
    take = os.environ.pop
    gate_fd, notify_fd = take("TANDEM_GATE_FD", ""), take("TANDEM_NOTIFY_FD", "")
    return Orders(
        app=take("TANDEM_APP"),
        app_dir=take("TANDEM_APP_DIR", ""),
        listen_fds=[int(fd) for fd in take("TANDEM_LISTEN_FD").split(",")],
        uvicorn=take("TANDEM_UVICORN", ""),
        gate_fd=int(gate_fd) if gate_fd else None,
        notify_fd=int(notify_fd) if notify_fd else None,
        preimport=[name.strip() for name in take("TANDEM_PREIMPORT", "").split(",") if name.strip()],
        loop=take("TANDEM_LOOP", "") or "auto",
        access_log=take("TANDEM_ACCESS_LOG", "1") != "0",
        grace=float(take("TANDEM_GRACE", "") or 30),
        idle_drain=float(take("TANDEM_IDLE_DRAIN", "") or 5),
        watchdog=int(take("WATCHDOG_USEC", "") or 0) / 1e6,
        drain=float(take("TANDEM_DRAIN", "") or 30),
        drain_busy=float(take("TANDEM_DRAIN_BUSY", "") or "inf"),
        drain_streams=float(take("TANDEM_DRAIN_STREAMS", "") or 30),
        factory=take("TANDEM_FACTORY", "") or "auto",
        lifespan=take("TANDEM_LIFESPAN", "") or "auto",
        interface=take("TANDEM_INTERFACE", "") or "auto",
        check=take("TANDEM_CHECK", ""),
        debugger=take("TANDEM_DEBUGGER", ""),
    )


class Worker(drain.Drain):
    """What Tandem adds to `uvicorn.Server`: notifications, and a drain that fails no request.

    Mixed in by `main`, because importing Uvicorn may itself be what fails.
    """

    notifier = lag = None
    signals = 0
    told = False  # to stop
    ticking = False  # in Uvicorn's main loop
    traceback_of = staticmethod(lambda error: user_traceback(error))

    async def serve(self, sockets=None):
        if not self.config.loaded:
            try:
                load_app(self.orders, self.config)
            except BaseException as error:
                fail_import(error, self.notifier)
        self.config.lifespan_class = type("Lifespan", (self.config.lifespan_class,), {"server": self})
        await super().serve(sockets=sockets)

    async def startup(self, sockets=None):
        options.finish(self.config, self.listener)
        await super().startup(sockets=sockets)
        if self.started:
            # Uvicorn would end here and shut nothing down, not even the connections that it has accepted.
            self.should_exit = False

    def begin_ticking(self):
        self.ticking = True
        if self.told:
            self.should_exit = True
            return
        # Not before there is something to retire: until then the signal is ignored, as it is by default.
        signal.signal(signal.SIGWINCH, self.retire)
        signal.siginterrupt(signal.SIGWINCH, False)
        show_stacks_on_abort()  # the app may have turned it off, or to a file of its own
        self.notifier.send("READY=1", patience=NOTIFY_PATIENCE)

    async def on_tick(self, counter):
        """Uvicorn calls this every 0.1 s on the event loop: an app that blocks the loop falls silent."""
        if not self.ticking:
            self.begin_ticking()
        clock = asyncio.get_running_loop().time
        self.lag.woke(clock())
        self.report()
        for order in self.notifier.orders():
            self.obey(order)
        if not self.should_exit and self.listener.is_lost():
            # No replacement serves yet: there is no time.
            self.status = SOCKET_LOST
            self.should_exit = self.brief = True
        over = await super().on_tick(counter)
        self.note_streams()
        self.lag.sleeps(clock())
        return over

    def obey(self, order):
        """The same was said by a signal, which counts: only a second signal is in a hurry."""
        if order == "RETIRE":
            self.retire()
        elif order == "STOP":
            self.should_exit = self.brief = True

    def fail(self, what, text):
        tell(self.notifier, "X_TANDEM_%s_ERROR" % what, text)

    def report(self):
        now = asyncio.get_running_loop().time()
        if now < self.next_report:
            return
        state = self.server_state
        lines = ["WATCHDOG=1"] if self.orders.watchdog else []
        lines.append("X_TANDEM_REQUESTS=%d" % state.total_requests)
        lines.append("X_TANDEM_CONNECTIONS=%d" % len(state.connections))
        lines.append("X_TANDEM_IN_FLIGHT=%d" % len(state.tasks))
        lines.append("X_TANDEM_LOOP_LAG_MS=%d" % round(self.lag.longest * 1000))
        unfinished = self.unfinished()
        if unfinished is not None:
            lines.append("X_TANDEM_DRAINING=" + json.dumps(unfinished))
        if self.notifier.send("\n".join(lines)):
            self.lag.reported()
            period = self.orders.watchdog / 3 or COUNTS_PERIOD
            self.next_report = now + (min(period, COUNTS_PERIOD) if self.closed else period)
        # Else the queue is full: again at the next tick.

    def retire(self, sig=None, frame=None):
        """SIGWINCH, nginx's word for it: a replacement serves, this worker leaves without haste."""
        self.should_exit = True

    def handle_exit(self, sig, frame):
        """Note the signal and do not keep it: since 0.29 Uvicorn would raise it again, and a clean stop end as 143."""
        if sig == signal.SIGINT and self.orders.debugger == "terminal":
            return  # Ctrl-C at a breakpoint is the debugger's; Tandem never sends it
        self.signals += 1
        if self.signals == 1:
            self.brief = self.told = True
            self.should_exit = self.ticking or not self.started
            if not self.started and hasattr(self, "lifespan"):
                self.lifespan.break_off()
        elif self.started:
            self.force_exit = True
        else:
            # The app's startup hangs, so nothing will ever look at a flag.
            os._exit(128 + sig)

    async def shutdown(self, sockets=None):
        self.say("STOPPING=1")
        await super().shutdown(sockets=sockets)

    def say(self, message):
        self.notifier.send(message, patience=NOTIFY_PATIENCE)


def wait_at_gate(gate_fd):
    if os.read(gate_fd, 1) == b"":
        os._exit(0)
    tie_lifeline(gate_fd)


def tie_lifeline(gate_fd):
    """Die with Tandem, however it died, together with the processes that the app has started.

    The kernel does it: SIGKILL to the whole group when the pipe's other end closes. A thread that reads the pipe would
    not run while a C extension holds the GIL or the process is stopped, and would itself be gone before the others
    when the kernel ends this process first (PR_SET_PDEATHSIG).
    """
    group = os.getpgrp() == os.getpid()
    fcntl.fcntl(gate_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(gate_fd, fcntl.F_SETOWN, -os.getpid() if group else os.getpid())
    fcntl.fcntl(gate_fd, fcntl.F_SETFL, fcntl.fcntl(gate_fd, fcntl.F_GETFL) | fcntl.FASYNC)
    if select.select([gate_fd], [], [], 0)[0]:
        os.kill(0 if group else os.getpid(), signal.SIGKILL)  # it closed a moment before


def preimport(orders):
    """Import what the app will need anyway. What fails here will fail again, and perhaps in other words, in the app's
    import: what it had imported by then is not imported again."""
    names = ["uvicorn.lifespan.on", "uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto"]
    if orders.loop != "asyncio":
        names.append("uvloop")
    for name in names + orders.preimport:
        try:
            importlib.import_module(name)
        except BaseException as error:  # a module may well call sys.exit()
            if not (isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]):
                failed_ahead.append((name, error))


def resolve(app, app_dir):
    module_name, _, attributes = app.partition(":")
    if not module_name or not attributes:
        raise ImportError("the app %r is not of the form module:attribute" % app)
    found = module = importlib.import_module(module_name)
    try:
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except AttributeError as error:
        hidden = importlib.machinery.PathFinder.find_spec(module_name.partition(".")[0], [app_dir])
        file = getattr(module, "__file__", None) or "built in"
        if hidden is None or hidden.origin is None or file.startswith(app_dir + os.sep):
            raise
        text = "%s is not %s, but a module of that name which Uvicorn needs itself (%s): give the application's another name"
        raise ImportError(text % (module_name, hidden.origin, file)) from error
    return found


def user_traceback(error):
    """The traceback as its reader needs it: without the frames of this file and of the import system."""
    report = traceback.TracebackException(type(error), error, error.__traceback__)
    todo, seen = [report], set()
    while todo:
        part = todo.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if not is_ours(frame.filename)])
        todo += [part.__cause__, part.__context__] + (getattr(part, "exceptions", None) or [])
    alone = not report.stack and report.__cause__ is None and report.__context__ is None
    return "".join(report.format_exception_only() if alone else report.format())


OUR_FILES = {__file__, startup.__file__, importlib.__file__}
failed_ahead = []  # (name, exception) of what could not be imported ahead, though it is there


def is_ours(filename):
    return filename in OUR_FILES or filename.startswith("<frozen importlib")


def fail_import(error, notifier):
    text = user_traceback(error)
    for name, cause in failed_ahead[:1] if isinstance(error, (ImportError, AttributeError)) else []:
        if repr(cause) != repr(error):
            text += "\nBefore that, %s could not be imported ahead:\n%s" % (name, user_traceback(cause))
    refuse(text, notifier)


def refuse(text, notifier):
    """Tell Tandem why the app cannot be imported, and end."""
    tell(notifier, "X_TANDEM_IMPORT_ERROR", text)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit(): threads that a half-imported app left behind would keep the process alive.
    os._exit(STARTUP_FAILED)


def show_stacks_on_abort():
    """SIGABRT, from a watchdog that lost patience, shows what every thread was doing: straight to standard error,
    whatever the app has made of `sys.stderr` and of the signal, which faulthandler leaves to the handler before."""
    faulthandler.disable()
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    faulthandler.enable(file=2, all_threads=True)


def prepare(orders):
    """Make the process ready before any code but ours runs."""
    show_stacks_on_abort()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no KeyboardInterrupt traceback out of a half-done import
    sys.stdout.reconfigure(line_buffering=True)  # a pipe is block-buffered: prints would come minutes late
    # The script's own directory is Tandem's run directory: nothing is to be imported from there, or compiled into it.
    # It is not in the path where PYTHONSAFEPATH is set.
    sys.path[:] = [path for path in sys.path if path and os.path.abspath(path) != RUN_DIR]
    for fd in (*orders.listen_fds, orders.gate_fd, orders.notify_fd):
        if fd is not None:
            os.set_inheritable(fd, False)  # or a program that the app starts keeps the port, or speaks for the worker
    debugger.set_up(orders.debugger)


def load_config(orders, in_loop=False):
    """Import everything: Uvicorn and libraries before the gate, the app behind it.

    With `in_loop` the app is left for the event loop to import if the installed Uvicorn does it there: up to that version
    of it apps may start tasks when they are imported.
    """
    try:
        import uvicorn
        import uvicorn.main
    except ModuleNotFoundError as error:
        if error.name != "uvicorn":
            raise
        text = "No module named 'uvicorn', which runs the workers: %s -m pip install uvicorn"
        raise ModuleNotFoundError(text % sys.executable, name=error.name) from None

    # Here Uvicorn's command does it. A queue.py or email.py of the app's hides nothing from what is imported by now.
    sys.path.insert(0, orders.app_dir)
    base = {"loop": orders.loop, "access_log": orders.access_log, "log_config": LOG_CONFIG, "log_level": "info"}
    config = uvicorn.Config(None, **options.for_config(orders.uvicorn, base))
    if orders.loop == "uvloop":
        importlib.import_module("uvloop")
    preimport(orders)
    if orders.gate_fd is not None:
        wait_at_gate(orders.gate_fd)
    if not in_loop or hasattr(uvicorn.Config, "load_app"):
        load_app(orders, config)
    return uvicorn, config


def load_app(orders, config):
    startup.settle(config, resolve(orders.app, orders.app_dir), orders)
    if orders.debugger == "terminal":
        debugger.patch_pdb()


def main():
    orders = read_orders()
    notifier = Notifier(orders.notify_fd)
    prepare(orders)
    listener = listening.Listening(orders.listen_fds)
    try:
        uvicorn, config = load_config(orders, in_loop=True)
    except BaseException as error:  # an app may well call sys.exit() when it misses a setting
        fail_import(error, notifier)
    serve(orders, notifier, uvicorn, config, listener)


def serve(orders, notifier, uvicorn, config, listener):
    """Serve until the stop, and end with the process's exit status."""
    server = type("Server", (Worker, uvicorn.Server), {})(config)
    server.orders = orders
    server.notifier = notifier
    server.listener = listener
    server.handshaking = options.HANDSHAKING
    server.lag = notify.LoopLag(drain.REPORT_TICK)
    if listener.is_lost():
        sys.exit(SOCKET_LOST)
    # Not `uvicorn --fd`, which calls every socket AF_UNIX: no client address, and no TCP_NODELAY (44 ms a request).
    try:
        server.run(sockets=listener.sockets())
    except SystemExit:  # later versions of Uvicorn end so where the startup failed
        pass
    # The interpreter's last collections walk every object there is, for 0.3 s and more, to free what the kernel frees
    # at once, and the stop would wait for it. What atexit and threads have to do is still done.
    gc.freeze()
    gc.disable()
    if not server.started and server.brief:
        sys.exit(128 + signal.SIGTERM)
    sys.exit(server.status if server.started else STARTUP_FAILED)


if __name__ == "__main__":
    main()
