"""Decide what an application is, and whether it has started well. A part of launcher.py, loaded by it.

Uvicorn guesses: to its `auto`, any TypeError of a factory means that there is no factory, and any exception of a
lifespan that there is no lifespan. Where the guess is wrong, a server that answers nothing but errors calls itself
started. Here an application is called as what it takes says, a factory's error is its import error, and an exception
counts as "knows no lifespan" only if the application treats a scope that no application knows in the same way.

Beside that: `workers.check`, a request that a worker must answer over a connection of its own before it is let at the
socket, and words for a startup or a shutdown that does not end.
"""

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import sys
import traceback

PATIENCE = 5.0  # seconds: a startup or a shutdown that takes longer is worth a word
PROBE_PATIENCE = 1.0  # seconds: for an application's answer to a scope that it cannot know
REST_PATIENCE = 1.0  # seconds: for the rest of an answer whose status is known
UNKNOWN = "tandem.unknown"
WSGI = (
    "%s is a WSGI application: it takes environ and start_response, as Flask's and Django's wsgi.py do. Name its ASGI "
    "application (Django's is in asgi.py), wrap it (a2wsgi.WSGIMiddleware), or set workers.interface = \"wsgi\""
)


class NoApplication(Exception):
    """What `workers.app` names cannot be served; the text says why."""

    __module__ = "builtins"  # where a traceback writes no module's name


def takes(callee, count):
    """Whether it can be called with so many arguments; None where nothing tells."""
    try:
        signature = inspect.signature(callee)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def is_async(callee):
    if inspect.isclass(callee):
        return False  # its objects may be
    return inspect.iscoroutinefunction(callee) or inspect.iscoroutinefunction(getattr(callee, "__call__", None))


def is_factory(found):
    """Whether it makes the application, being called with nothing."""
    if is_async(found) or not takes(found, 0):
        return False
    if inspect.isclass(found):
        return not hasattr(found, "__await__")  # an ASGI 3 application may be a class whose objects are awaited
    return inspect.isroutine(found) or isinstance(found, functools.partial) or not (takes(found, 3) or takes(found, 1))


def make(found, name, factory):
    """The application: what `workers.app` names, or what that returns."""
    if not callable(found):
        raise NoApplication("%s is %s: it cannot be called, so it is no application" % (name, described(found)))
    if factory == "no" or factory == "auto" and not is_factory(found):
        return found
    if is_async(found):
        raise NoApplication("%s is an asynchronous function: no server awaits a factory" % name)
    made = found()
    if not callable(made):
        raise NoApplication("%s() returned %s, which is no application" % (name, described(made)))
    return made


def described(value):
    return "None" if value is None else "an object of the type %s" % type(value).__name__


def interface_of(app, name):
    """How it is called, by what it takes. Not by whether it is a coroutine function, as Uvicorn has it: a function that
    returns another's coroutine is not."""
    if takes(app, 3) in (True, None):
        return "asgi3"
    if takes(app, 1):
        return "asgi2"
    if takes(app, 2):
        raise NoApplication(WSGI % name)
    hint = ": it may be a factory that wants arguments" if inspect.isroutine(app) else ""
    if takes(app, 0) and is_async(app):
        hint = ": it is an asynchronous function without parameters, and no server awaits a factory"
    text = "%s cannot be called with scope, receive and send, so it is no ASGI application%s"
    raise NoApplication(text % (name, hint))


def settle(config, found, orders):
    """Tell Uvicorn what the application is, so that nothing is left for it to guess; then let it load."""
    app = make(found, orders.app, orders.factory)
    interface = interface_of(app, orders.app) if orders.interface == "auto" else orders.interface
    config.app, config.factory, config.interface = (lambda: app), True, interface
    config.lifespan = orders.lifespan
    if interface == "wsgi" and config.lifespan == "auto":
        config.lifespan = "off"
    config.load()
    callee = (lambda scope, receive, send: app(scope)(receive, send)) if interface == "asgi2" else app
    mixin = Started if config.lifespan == "off" else Lifespan
    config.lifespan_class = type("Lifespan", (mixin, config.lifespan_class), {"callee": staticmethod(callee)})


class Started:
    """Mixed into what Uvicorn tells the application of its start and its end with, also where it tells nothing."""

    server = callee = task = checking = None
    broken_off = False

    async def startup(self):
        watch = asyncio.get_running_loop().create_task(self.watch("startup"))
        await super().startup()
        watch.cancel()
        if self.broken_off:
            self.should_exit = True
        if not self.should_exit and self.server.orders.check:
            await self.check(self.server.orders.check)

    async def watch(self, what):
        await asyncio.sleep(PATIENCE)
        where = "".join("\n  " + place for place in places(self.task))
        text = "WARNING the application's %s (its lifespan) has taken %d s and goes on%s"
        print(text % (what, PATIENCE, ", at" + where if where else ""), file=sys.stderr, flush=True)

    async def check(self, path):
        self.checking = asyncio.ensure_future(ask(self.server, self, path))
        await asyncio.wait({self.checking})
        if self.broken_off:
            await self.server.let_go()
            self.should_exit = True
            return
        problem = self.checking.result()
        if problem is not None:
            self.server.fail("CHECK", "GET %s (workers.check) %s" % (path, problem))
            await self.shutdown()
            self.should_exit = True

    def break_off(self):
        """A stop comes before the startup has ended: what it holds is let go of, as at any cancellation."""
        self.broken_off = self.startup_failed = True
        for task in (self.task, self.checking):
            if task is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)


class Lifespan(Started):
    """Mixed into `uvicorn.lifespan.on.LifespanOn`, which says "unsupported" to whatever an application raises."""

    async def main(self):
        self.task = asyncio.current_task()
        asgi = {"version": self.config.asgi_version, "spec_version": "2.0"}
        try:
            scope = {"type": "lifespan", "asgi": asgi, "state": self.state}
            await self.config.loaded_app(scope, self.receive, self.send)
        except BaseException as error:
            # The first is what versions before 0.54 call it.
            self.error_occured = self.error_occurred = True
            await self.raised(error, asgi)
        finally:
            self.startup_event.set()
            self.shutdown_event.set()

    async def raised(self, error, asgi):
        if self.startup_failed or self.shutdown_failed or self.broken_off:
            return  # it has said so
        if self.startup_event.is_set():
            if not isinstance(error, asyncio.CancelledError):  # the event loop is closed over it
                self.logger.error("Exception in the application's lifespan\n", exc_info=error)
        elif self.config.lifespan == "auto" and await self.knows_no_lifespan(error, asgi):
            self.logger.info("ASGI 'lifespan' protocol appears unsupported.")
        else:
            self.startup_failed = True
            # Before the traceback, whose last line says what it was.
            hint = 'Where it knows no lifespan, say so with workers.lifespan = "off".\n'
            hint = "" if self.config.lifespan == "on" else hint
            self.server.fail("LIFESPAN", hint + self.server.traceback_of(error))

    async def knows_no_lifespan(self, error, asgi):
        """Whether the application does the same to a scope of a type that it cannot know."""
        if isinstance(error, NotImplementedError):
            return True
        queue = asyncio.Queue()
        queue.put_nowait({"type": UNKNOWN + ".startup"})
        scope = {"type": UNKNOWN, "asgi": dict(asgi), "state": {}}
        try:
            await asyncio.wait_for(self.callee(scope, queue.get, self.send), PROBE_PATIENCE)
        except BaseException as other:
            return type(other) is type(error) and place(other) == place(error)
        return False

    async def send(self, message):
        if message["type"] == "lifespan.startup.failed" and message.get("message"):
            self.server.fail("LIFESPAN", str(message["message"]))
            message = {"type": message["type"]}
        await super().send(message)

    async def shutdown(self):
        watch = asyncio.get_running_loop().create_task(self.watch("shutdown"))
        try:
            await super().shutdown()
        finally:
            watch.cancel()


def place(error):
    """Where in the application it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_of_uvicorn(frame.filename)]
    return (frames[-1].filename, frames[-1].lineno) if frames else None


def is_of_uvicorn(filename):
    return filename == __file__ or os.path.join("uvicorn", "lifespan") in filename


def places(task):
    """Where a task waits, the innermost last: asyncio shows but the outermost."""
    found, waiting = [], task.get_coro() if task is not None else None
    while waiting is not None and len(found) < 50:
        frames = (getattr(waiting, name, None) for name in ("cr_frame", "ag_frame", "gi_frame"))
        frame = next(filter(None, frames), None)
        if frame is not None and frame.f_code.co_filename != __file__:
            found.append("%s:%d in %s" % (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        names = ("cr_await", "gi_yieldfrom", "ag_await")
        waiting = next((it for it in (getattr(waiting, name, None) for name in names) if it is not None), None)
        if type(waiting).__name__ == "async_generator_asend" and frame is not None:
            # It does not tell its generator; `@asynccontextmanager`, which calls it, does.
            waiting = getattr(frame.f_locals.get("self"), "gen", None)
    return found


async def ask(server, lifespan, path):
    """Let Uvicorn answer one request over a connection that nobody else has; what is wrong with the answer, or None."""
    try:
        return await exchange(server, lifespan, path)
    except OSError as error:
        return "could not be asked for: %s" % error


async def exchange(server, lifespan, path):
    loop, config = asyncio.get_running_loop(), server.config
    ours, theirs = connected_pair()

    def make_protocol():
        return config.http_protocol_class(
            config=config, server_state=server.server_state, app_state=lifespan.state, _loop=loop
        )

    await loop.connect_accepted_socket(make_protocol, theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    lines = ("GET %s HTTP/1.1" % path, "Host: 127.0.0.1", "User-Agent: tandem", "Accept: */*", "Connection: close")
    writer.write("".join(line + "\r\n" for line in lines).encode() + b"\r\n")
    try:
        words = (await reader.readline()).split(None, 2)
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drop_rest(reader), REST_PATIENCE)
    finally:
        writer.close()
    await server.let_go()
    if status is None:
        return "got no answer: the connection was closed"
    return "was answered with status %d" % status if status >= 500 else None


async def drop_rest(reader):
    while await reader.read(64 * 1024):
        pass


def connected_pair():
    """Both ends of a connection of this machine, or of this process where it has no network: applications look at the
    client's address."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(8)
            ours = socket.create_connection(listener.getsockname(), timeout=1.0)
            while True:
                theirs, peer = listener.accept()
                if peer == ours.getsockname():
                    break
                theirs.close()  # anybody may have come first
    except OSError:
        ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    return ours, theirs
