"""End a Uvicorn server without failing a request. A part of launcher.py, loaded by it.

Uvicorn's own shutdown closes idle keep-alive connections at once, the next request perhaps already on its way
(Kludex/uvicorn #3124), drops pipelined requests, and in old versions waits without a limit. Here instead: stop
accepting; end every connection with its last answer, which says "Connection: close"; cut what is left at the limit.

There are two ways. A *retiring* worker has a replacement and time: idle connections stay as long as Uvicorn would have
kept them anyway, until `orders.drain` is over; WebSockets and event streams until `orders.drain_streams` is; requests
in flight, what runs after their answer included, until `orders.drain_busy` is, which may be never. A *stopping* worker
is brief: `orders.idle_drain` for idle connections and for the rest of a half-sent request, `orders.grace` for requests
in flight; WebSockets end at once. A retiring worker that is told to stop becomes a stopping one, with new limits.
"""

import asyncio
import collections
import contextlib
import fcntl
import logging
import os
import struct
import sys
import urllib.parse

# ioctl_tty(2) on x86 and ARM, and on macOS. Not from `termios`: the application may have a file of that name.
FIONREAD = 0x541B if sys.platform == "linux" else 0x4004667F
TICK = 0.02  # seconds
REPORT_TICK = 0.1  # seconds: as Uvicorn's main loop
ATTACH_PAUSE = 0.02  # seconds: see Drain.stop_accepting
CUT_PATIENCE = 0.5  # seconds: for an app to notice that its client is gone
STREAM_PATIENCE = 5.0  # seconds: the same for a WebSocket or an event stream of a worker that has time
PARTIAL_PATIENCE = 5.0  # seconds: for the rest of a request of which a part has come
NAMES_MAX = 5  # requests that are named
CLOSE = (b"connection", b"close")
EVENT_STREAM = b"text/event-stream"


class Drain:
    """Mixed into `uvicorn.Server`, whose `shutdown` it replaces."""

    orders = None
    listener = None
    handshaking = ()  # connections that are accepted, and do not speak TLS yet
    brief = False  # stopping, not retiring
    status = 0  # of the process, if it has to end on the spot
    closed = False  # no connection is accepted any more
    next_report = 0.0

    async def shutdown(self, sockets=None):
        loop = asyncio.get_running_loop()
        ticking = loop.create_task(self.keep_ticking())
        await self.announce_last_answers()
        await self.stop_accepting(loop, sockets or [])
        self.closed, self.next_report = True, 0.0
        self.say("X_TANDEM_CLOSED=1")
        await self.drain(loop)
        cut = await self.cut()
        self.say("X_TANDEM_DRAINED=1")
        if not self.force_exit:
            await self.lifespan.shutdown()
        ticking.cancel()
        if cut:
            # A request may still run in a thread, which nothing can cancel: asyncio.run() would wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status)

    async def keep_ticking(self):
        """Uvicorn's main loop is over: the watchdog and the Date header go on."""
        while True:
            await self.on_tick(0)
            await asyncio.sleep(REPORT_TICK)

    async def announce_last_answers(self):
        """Make every response that begins from now on say "Connection: close"."""
        make = self.config.http_protocol_class

        def make_and_adopt(**parts):
            connection = make(**parts)
            if is_http(connection):
                adopt(connection)
            return connection

        self.config.http_protocol_class = make_and_adopt
        for _ in range(3):
            # A connection made just before is in Uvicorn's set one turn of the loop later, and reads after two.
            self.adopt_all()
            await asyncio.sleep(0)

    def adopt_all(self):
        for connection in list(self.server_state.connections):
            if is_http(connection):
                adopt(connection)

    async def stop_accepting(self, loop, sockets):
        self.listener.put_back()
        # Where the app has closed the socket, there is little left to let go of.
        careless = contextlib.suppress(OSError, ValueError, RuntimeError)
        selector = isinstance(loop, asyncio.SelectorEventLoop)
        if selector:
            # asyncio accepts first and attaches the connection in a later turn; a server closed in between drops it.
            with careless:
                self.listener.let_go(loop)
            await asyncio.sleep(ATTACH_PAUSE)
        for server in self.servers:
            with careless:
                server.close()
        for sock in sockets:
            with careless:
                sock.close()
        self.listener.close()
        if not selector:
            # uvloop attaches at once, but tells Uvicorn in a later turn: its set may still be empty, and the drain over.
            await asyncio.sleep(ATTACH_PAUSE)

    async def drain(self, loop):
        """Wait until every client has had its last answer."""
        state, orders = self.server_state, self.orders
        brief = since = None
        streams, waiting = Streams(self), {}
        while (state.connections or streams.others(state.tasks) or self.handshaking) and not self.force_exit:
            now = loop.time()
            if brief is not self.brief:
                brief, since, waiting = self.brief, now, {}
            passed = now - since
            if passed >= (orders.grace if brief else orders.drain_busy):
                return
            self.adopt_all()
            over = passed >= orders.drain_streams
            streams.end(now, websockets=brief or over, events=over and not brief)
            for connection in filter(is_http, list(state.connections)):
                # Not at once: a client that is sending right now gets its answer.
                what = waits_for(connection)
                kept_as, kept_since = waiting.get(connection, (None, now))
                if what is None or kept_as != what:
                    kept_since = now
                waiting[connection] = what, kept_since
                if what == "request" and (brief or passed >= orders.drain):
                    if now - kept_since >= orders.idle_drain:
                        connection.shutdown()
                elif what == "rest" and (brief or passed >= orders.drain):
                    # No request yet, and it may never be one: a stop gives it as long as an idle connection.
                    if now - kept_since >= (orders.idle_drain if brief else PARTIAL_PATIENCE):
                        connection.transport.close()
            limit = orders.idle_drain if brief else orders.drain
            if passed >= limit and not (state.connections or streams.others(state.tasks)):
                return  # clients that never said a word of TLS
            await asyncio.sleep(TICK)

    async def let_go(self):
        """End what the requests that there are go on answering without their clients."""
        tasks = set(self.server_state.tasks)
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=CUT_PATIENCE)
        # What runs after an answer is none of the client's.
        unanswered = {task for task in tasks if not getattr(owner_of(task), "response_complete", True)}
        if unanswered:
            await cancel(unanswered, CUT_PATIENCE)

    def note_streams(self):
        """From the first tick on, know which answers are event streams: nothing of Uvicorn's remembers it."""
        headers = self.server_state.default_headers
        if type(headers) is list:
            self.server_state.default_headers = Headers(headers)

    def unfinished(self):
        """What is left to be done, once no connection is accepted any more."""
        if not self.closed:
            return None
        owners = [owner_of(task) for task in list(self.server_state.tasks)]
        streams = sum(map(is_stream, owners))
        idle = [it for it in list(self.server_state.connections) if is_http(it) and waits_for(it) is not None]
        names = ["%s (%d)" % pair if pair[1] > 1 else pair[0] for pair in names_of(owners).most_common(NAMES_MAX)]
        return {"requests": len(owners) - streams, "streams": streams, "idle": len(idle), "on": names}

    async def cut(self):
        """End what would not end by itself; say whether a request had to be cancelled."""
        state = self.server_state
        tasks = set(state.tasks)
        told = in_words(map(owner_of, tasks))
        limit = "stop.grace" if self.brief else "workers.drain_busy"
        when = "by a second signal" if self.force_exit else "at the end of " + limit
        for connection in list(state.connections):
            # The app sees its client leave, which ends an event stream without a traceback in the log.
            connection.transport.close()
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=CUT_PATIENCE)
        if told:
            # Those that saw their client leave and ended are cut as well.
            print("WARNING cancelled %s %s" % (told, when), file=sys.stderr, flush=True)
        if not tasks:
            return False
        await cancel(tasks, CUT_PATIENCE)
        return True


async def cancel(tasks, patience):
    """Cancel requests. What that means for each was said: Uvicorn would log a traceback for every one."""
    logger, quiet = logging.getLogger("uvicorn.error"), Quiet()
    logger.addFilter(quiet)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=patience)
    logger.removeFilter(quiet)


class Quiet(logging.Filter):
    def filter(self, record):
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class Streams:
    """The WebSockets and event streams of a worker that leaves."""

    def __init__(self, server):
        self.server = server
        self.told = {}  # their tasks, and since when each client is told
        self.closed = set()  # WebSockets that were told
        self.given_up = set()  # tasks that ended neither with their client nor when they were cancelled
        self.cancelling = set()

    def others(self, tasks):
        """Those that are worth a wait: a stream may run in a thread, which nothing can cancel."""
        return any(task not in self.given_up for task in list(tasks))

    def end(self, now, websockets, events):
        """Tell the clients whose time is over; some time later cancel what goes on without them."""
        if not (websockets or events):
            return
        owners = {task: owner_of(task) for task in list(self.server.server_state.tasks) if task not in self.told}
        ended = []
        for connection in list(self.server.server_state.connections):
            if websockets and not is_http(connection) and connection not in self.closed and close_websocket(connection):
                self.closed.add(connection)
        for task, owner in owners.items():
            if is_websocket(owner):
                over = owner in self.closed
            else:
                over = events and is_stream(owner)
                if over and not owner.disconnected:
                    owner.transport.close()
            if over:
                self.told[task] = now
                ended.append(owner)
        if ended:
            when = "at a stop" if self.server.brief else "at the end of workers.drain_streams"
            print("INFO closed %s %s" % (in_words(ended, "stream"), when), file=sys.stderr, flush=True)
        for task, since in self.told.items():
            if not task.done() and now - since >= STREAM_PATIENCE and task not in self.cancelling | self.given_up:
                self.cancelling.add(task)
                asyncio.get_running_loop().create_task(self.give_up(task))

    async def give_up(self, task):
        await cancel({task}, CUT_PATIENCE)
        if not task.done():
            self.given_up.add(task)


def owner_of(task):
    """The request that a task of Uvicorn's answers, as Uvicorn has it: `run_asgi` is a method of it."""
    coroutine = task.get_coro() if hasattr(task, "get_coro") else None
    frame = getattr(coroutine, "cr_frame", None)
    return frame.f_locals.get("self") if frame is not None else None


def is_websocket(owner):
    return getattr(owner, "scope", {}).get("type") == "websocket"


def is_stream(owner):
    return is_websocket(owner) or getattr(owner, "is_event_stream", False)


def names_of(owners):
    """How often each path is being answered, with its method. Not the query: it may hold secrets."""
    names = collections.Counter()
    for owner in owners:
        scope = getattr(owner, "scope", None) or {}
        method = scope.get("method") or ("WebSocket" if scope.get("type") == "websocket" else "unknown")
        names["%s %s" % (method, urllib.parse.quote(scope.get("path", ""))[:100])] += 1
    return names


def in_words(owners, what="unfinished request"):
    names = names_of(owners)
    count = sum(names.values())
    listed = ["%s (%d)" % pair if pair[1] > 1 else pair[0] for pair in names.most_common(NAMES_MAX)]
    if len(names) > NAMES_MAX:
        listed.append("...")
    return "%d %s(s): %s" % (count, what, ", ".join(listed)) if count else ""


class Headers(list):
    """The headers that Uvicorn puts before the app's own: it does so with `+`, when an answer begins."""

    def __add__(self, headers):
        for header in headers:
            if header[1][:17] == EVENT_STREAM:
                note_stream(sys._getframe(1))
        return list.__add__(self, headers)


def note_stream(frame):
    """Remember of the request that `frame` answers that its answer is an event stream."""
    with contextlib.suppress(AttributeError):
        frame.f_locals["self"].is_event_stream = True


class LastState:
    """Uvicorn's ServerState as one connection sees it that is about to end: other headers, the rest as it is."""

    def __init__(self, connection):
        vars(self).update(connection=connection, state=connection.server_state)

    @property
    def default_headers(self):
        return LastHeaders(self.connection, self.state.default_headers)

    def __getattr__(self, name):
        return getattr(self.state, name)

    def __setattr__(self, name, value):
        setattr(self.state, name, value)


class LastHeaders(list):
    """The headers that Uvicorn puts before the app's own: it does so with `+`, when the response begins.

    Not earlier is it known whether the client has sent another request meanwhile. A WebSocket handshake is no last
    answer: the connection has left Uvicorn's set by then.
    """

    def __init__(self, connection, headers):
        super().__init__(headers)
        self.connection = connection

    def __add__(self, headers):
        if any(value[:17] == EVENT_STREAM for _, value in headers):
            note_stream(sys._getframe(1))
        connection = self.connection
        last = connection in connection.server_state.connections and not expects_more(connection)
        return [*self, CLOSE, *headers] if last else [*self, *headers]


def adopt(connection):
    """Make this connection's further answers its last."""
    if isinstance(connection.server_state, LastState):
        return
    connection.server_state = LastState(connection)
    waiting = [cycle for cycle, _ in getattr(connection, "pipeline", ())]  # httptools
    for cycle in [connection.cycle, *waiting]:
        if cycle is not None and not cycle.response_started:
            cycle.default_headers = LastHeaders(connection, cycle.default_headers)


def is_http(connection):
    return hasattr(connection, "cycle")


def waits_for(connection):
    """What a connection waits for on which no request is being answered: a "request", or the "rest" of one."""
    if connection.cycle is not None and not connection.cycle.response_complete:
        return None
    return "rest" if expects_more(connection) else "request"


def expects_more(connection):
    """Whether more of this client's requests has come, or is still to come, than the one being answered.

    A close would lose it: the rest of a body, a pipelined request or a part of one, read or not.
    """
    cycle = connection.cycle
    if cycle is not None and cycle.more_body:
        return True
    if hasattr(connection, "pipeline"):  # httptools, which sets a new scope when a request begins
        parsed = connection.pipeline or connection.scope is not (cycle and cycle.scope)
    else:
        parsed = getattr(connection.conn, "trailing_data", (b"",))[0]  # h11
    return bool(parsed) or unread(connection.transport) > 0


def unread(transport):
    """How many bytes of this connection the kernel holds for us."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        fd = transport.get_extra_info("socket").fileno()
        return struct.unpack("i", fcntl.ioctl(fd, FIONREAD, bytes(4)))[0]
    return 0


def close_websocket(connection):
    """Close with 1012 (service restart), but let a handshake end first: Uvicorn would answer it with a 500."""
    done = getattr(connection, "handshake_complete", None)
    if done is None:
        event = getattr(connection, "handshake_completed_event", None)  # the older `websockets` protocol
        done = event is None or event.is_set()
    if done:
        connection.shutdown()
    return done
