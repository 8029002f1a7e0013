"""End a Uvicorn server without failing a request. A part of launcher.py, loaded by it.

Uvicorn's own shutdown closes idle keep-alive connections at once, the next request perhaps already on its way
(Kludex/uvicorn #3124), drops pipelined requests, and in old versions waits without a limit. Here instead: stop
accepting; end every connection with its last answer, which says "Connection: close"; cut what is left at the limit.

There are two ways. A *retiring* worker has a replacement and time: idle connections stay as long as Uvicorn would have
kept them anyway, until `orders.drain` is over. A *stopping* worker is brief: `orders.idle_drain` for idle connections,
`orders.grace` for requests in flight. A retiring worker that is told to stop becomes a stopping one, with new limits.
"""

import asyncio
import contextlib
import fcntl
import os
import struct
import sys
import termios

TICK = 0.02  # seconds
REPORT_TICK = 0.1  # seconds: as Uvicorn's main loop
ATTACH_PAUSE = 0.02  # seconds: see Drain.stop_accepting
CUT_PATIENCE = 0.5  # seconds: for an app to notice that its client is gone
CLOSE = (b"connection", b"close")


class Drain:
    """Mixed into `uvicorn.Server`, whose `shutdown` it replaces."""

    orders = None
    listener = None
    handshaking = ()  # connections that are accepted, and do not speak TLS yet
    brief = False  # stopping, not retiring
    status = 0  # of the process, if it has to end on the spot

    async def shutdown(self, sockets=None):
        loop = asyncio.get_running_loop()
        ticking = loop.create_task(self.keep_ticking())
        await self.announce_last_answers()
        await self.stop_accepting(loop, sockets or [])
        await self.drain(loop)
        cut = await self.cut()
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
        state = self.server_state
        brief = since = None
        idle_since, told = {}, set()
        while (state.connections or state.tasks or self.handshaking) and not self.force_exit:
            now = loop.time()
            if brief is not self.brief:
                brief, since, idle_since = self.brief, now, {}
            if now - since >= (self.orders.grace if brief else self.orders.drain):
                return
            self.adopt_all()
            for connection in list(state.connections):
                if not is_http(connection):
                    if connection not in told and close_websocket(connection):
                        told.add(connection)
                elif brief and is_idle(connection):
                    # Not at once: a client that is sending right now gets its answer.
                    if now - idle_since.setdefault(connection, now) >= self.orders.idle_drain:
                        connection.shutdown()
                else:
                    idle_since.pop(connection, None)
            if brief and not (state.connections or state.tasks) and now - since >= self.orders.idle_drain:
                return  # clients that never said a word of TLS
            await asyncio.sleep(TICK)

    async def cut(self):
        """End what would not end by itself; say whether a request had to be cancelled."""
        state = self.server_state
        for connection in list(state.connections):
            # The app sees its client leave, which ends an event stream without a traceback in the log.
            connection.transport.close()
        tasks = set(state.tasks)
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=CUT_PATIENCE)
        if not tasks:
            return False
        period = "grace period" if self.brief else "drain"
        when = "by a second signal" if self.force_exit else "at the end of the " + period
        print("WARNING cancelled %d unfinished request(s) %s" % (len(tasks), when), file=sys.stderr)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CUT_PATIENCE)
        return True


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


def is_idle(connection):
    return (connection.cycle is None or connection.cycle.response_complete) and not expects_more(connection)


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
        return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
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
