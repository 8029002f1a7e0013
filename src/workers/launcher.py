"""Runs one ASGI application with Uvicorn on a listening socket that Tandem holds.

Written into the run directory by Tandem at start; users install nothing of it. Environment:

  TANDEM_APP, TANDEM_APP_DIR   what to run, and where imports start
  TANDEM_LISTEN_FD             the inherited socket
  TANDEM_GATE_FD               a pipe: one byte lets the application be imported; its end means that Tandem is gone
  TANDEM_PREIMPORT             modules to import before the gate opens, comma-separated
  NOTIFY_SOCKET, WATCHDOG_USEC as sd_notify(3) has them
  TANDEM_GRACE                 seconds that requests in flight have to finish
  TANDEM_IDLE_DRAIN            seconds that idle keep-alive connections are kept during the drain
  TANDEM_LOOP, TANDEM_ACCESS_LOG

Exit status: 0 after a stop that was asked for, 3 when the application cannot start.
"""

import asyncio
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback

STARTUP_FAILED = 3
IMPORT_ERROR_MAX = 32 * 1024
# How long sockets that the kernel had accepted get to attach to the asyncio loop after its reader is removed.
ATTACH_SECONDS = 0.02
DRAIN_POLL_SECONDS = 0.02
COUNTS_SECONDS = 1.0

APP = os.environ.get("TANDEM_APP", "")
GRACE = float(os.environ.get("TANDEM_GRACE", "10"))
IDLE_DRAIN = float(os.environ.get("TANDEM_IDLE_DRAIN", "1"))
WATCHDOG = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6


class Notifier:
    """Sends sd_notify(3) datagrams; without NOTIFY_SOCKET it says nothing."""

    def __init__(self):
        path = os.environ.get("NOTIFY_SOCKET", "")
        self.socket = None
        if path:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.setblocking(False)
            self.socket.connect("\0" + path[1:] if path.startswith("@") else path)

    def send(self, *lines):
        if self.socket is None:
            return False
        try:
            self.socket.send("\n".join(lines).encode())
            return True
        except OSError:
            # Tandem is gone or its queue is full: the next datagram says as much.
            return False


def wait_at_gate():
    """Import what is known to be needed, then wait until the application may be imported."""
    gate = int(os.environ.get("TANDEM_GATE_FD", "-1"))
    for name in filter(None, os.environ.get("TANDEM_PREIMPORT", "").split(",")):
        try:
            importlib.import_module(name.strip())
        except Exception:
            # Only a head start: what is missing or broken shows when the application imports it.
            pass
    if gate < 0:
        return
    os.set_inheritable(gate, False)
    if not os.read(gate, 1):
        os._exit(0)
    threading.Thread(target=hold_lifeline, args=(gate,), name="tandem-lifeline", daemon=True).start()


def hold_lifeline(gate):
    """End the worker and all it started once Tandem is gone."""
    while os.read(gate, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def load_app(notifier):
    """Import the application, or tell Tandem why that is not possible and exit."""
    module, _, path = APP.partition(":")
    sys.path[:0] = [os.environ.get("TANDEM_APP_DIR") or os.getcwd()]
    try:
        target = importlib.import_module(module)
        for name in (path or "app").split("."):
            target = getattr(target, name)
        return target
    except BaseException as error:
        text = explain(error)
        if not notifier.send("X_TANDEM_IMPORT_ERROR=" + json.dumps(text)):
            print(text, file=sys.stderr, flush=True)
        sys.stderr.flush()
        os._exit(STARTUP_FAILED)


def explain(error):
    """The traceback without the launcher's and the import system's own frames."""
    frames = error.__traceback__
    mine = (__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
    while frames and (frames.tb_frame.f_code.co_filename in mine or "importlib" in frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    error.__traceback__ = frames
    lines = [line for line in traceback.format_exception(type(error), error, frames) if "importlib._bootstrap" not in line]
    text = "".join(lines)
    return text if len(text) <= IMPORT_ERROR_MAX else "[…]\n" + text[-IMPORT_ERROR_MAX:]


def make_server(notifier, config):
    """A Uvicorn server that says when it is ready and alive, and drains without failing a request."""
    import uvicorn

    class Server(uvicorn.Server):
        said_at = 0.0

        async def startup(self, sockets=None):
            await super().startup(sockets=sockets)
            if self.started and not self.should_exit:
                notifier.send("READY=1")

        async def on_tick(self, counter):
            self.say_alive()
            return await super().on_tick(counter)

        def say_alive(self):
            now = time.monotonic()
            period = WATCHDOG / 3 if WATCHDOG else COUNTS_SECONDS
            if now - self.said_at < min(period, COUNTS_SECONDS):
                return
            self.said_at = now
            state = self.server_state
            notifier.send(
                "WATCHDOG=1",
                f"X_TANDEM_REQUESTS={state.total_requests}",
                f"X_TANDEM_CONNECTIONS={len(state.connections)}",
                f"X_TANDEM_IN_FLIGHT={len(state.tasks)}",
            )

        async def shutdown(self, sockets=None):
            notifier.send("STOPPING=1")
            await self.refuse_new(sockets or ())
            await self.drain_idle()
            await super().shutdown(sockets=sockets)

        async def refuse_new(self, sockets):
            loop = asyncio.get_running_loop()
            if isinstance(loop, asyncio.SelectorEventLoop):
                for sock in sockets:
                    loop.remove_reader(sock.fileno())
                await asyncio.sleep(ATTACH_SECONDS)
            for server in self.servers:
                server.close()
            for sock in sockets:
                sock.close()
            state = self.server_state
            state.default_headers = [*state.default_headers, (b"connection", b"close")]
            for connection in list(state.connections):
                if not hasattr(connection, "cycle"):
                    # A websocket: its protocol has a word for this, close code 1012.
                    connection.shutdown()
                    continue
                cycle = connection.cycle
                if cycle is not None and not cycle.response_complete and not cycle.response_started:
                    cycle.keep_alive = False

        async def drain_idle(self):
            """Leave idle connections open until their next, last request: it may be on its way already."""
            end = time.monotonic() + IDLE_DRAIN
            while self.server_state.connections and time.monotonic() < end and not self.force_exit:
                self.say_alive()
                await asyncio.sleep(DRAIN_POLL_SECONDS)

    return Server(config)


def log_config():
    """Plain lines on standard error: Tandem adds the time and the service's name."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "plain": {"format": "%(levelname)s: %(message)s"},
            "access": {"()": "uvicorn.logging.AccessFormatter", "fmt": '%(client_addr)s "%(request_line)s" %(status_code)s', "use_colors": False},
        },
        "handlers": {
            "plain": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"},
            "access": {"class": "logging.StreamHandler", "formatter": "access", "stream": "ext://sys.stderr"},
        },
        "loggers": {
            "uvicorn": {"handlers": ["plain"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
        },
    }


def main():
    # The script's own directory is Tandem's, not the application's.
    sys.path.pop(0)
    sys.dont_write_bytecode = False
    faulthandler.enable()
    notifier = Notifier()
    # The family is read from the descriptor: with a wrong one Uvicorn loses the client's address and TCP_NODELAY.
    listener = socket.socket(fileno=int(os.environ["TANDEM_LISTEN_FD"]))
    os.set_inheritable(listener.fileno(), False)
    wait_at_gate()
    app = load_app(notifier)
    try:
        import uvicorn
    except ImportError:
        notifier.send("X_TANDEM_IMPORT_ERROR=" + json.dumps("uvicorn is not in the Python environment; add it to the requirements"))
        sys.exit(STARTUP_FAILED)
    config = uvicorn.Config(
        app,
        loop=os.environ.get("TANDEM_LOOP", "auto"),
        log_config=log_config(),
        access_log=os.environ.get("TANDEM_ACCESS_LOG") == "1",
        timeout_graceful_shutdown=max(1, int(GRACE)),
    )
    server = make_server(notifier, config)
    # Uvicorn raises the signal it was stopped by once more after its shutdown; the stop was clean all the same.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if server.started else os._exit(STARTUP_FAILED))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    sys.exit(0 if server.started else STARTUP_FAILED)


if __name__ == "__main__":
    main()
