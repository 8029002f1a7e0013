"""Import one ASGI app, and fork a worker off whenever Tandem asks for one: all share the memory of one import.

Embedded in the binary and written into the run directory beside launcher.py, whose parts it uses and whose head
describes the environment that both are started with. In addition:

  TANDEM_FORK_FD      a SOCK_SEQPACKET socket on which Tandem asks for workers
  TANDEM_PRELOAD      "strict": refuse to fork an app that is not safe to fork

A request is {"slot": N, "environment": {...}} with four descriptors: the read end of the worker's own gate, the write
ends of its stdout and stderr, and its own end of the socket pair on which it speaks. The answer is
{"slot": N, "pid": P}, or {"slot": N, "error": "..."} when the fork failed. The worker leads a process group of its own
and is Tandem's child, as if Tandem had spawned it: its parent, forked in between, has ended by the time of the answer,
and orphans become Tandem's children (PR_SET_CHILD_SUBREAPER).

The environment of a request holds the worker's own values (PGAPPNAME, ...). They are set before the gate opens. While
the app was imported it read the template's environment, which has no values of a slot.

The template says READY=1 once the app is imported and X_TANDEM_IMPORT_ERROR as the launcher does. Whenever there is
something new, it says

  X_TANDEM_FORK_UNSAFE=<json list of strings>    threads and connections that exist at the moment of a fork

SIGTERM ends the template at once, with 0; workers stay. So does the end of the fork socket.
"""

import array
import collections
import gc
import importlib.util
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings

MARK = "TANDEM_RUN"
REQUEST_MAX = 256 * 1024  # bytes; more than the socket's buffer can hold
DESCRIPTORS = 4
FINDINGS_MAX = 50
SETTLE = 0.2  # seconds: for threads that end at a fork to be gone from /proc


def load_launcher():
    """Import launcher.py from its place: the run directory is, rightly, not on the app's path."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launcher.py")
    spec = importlib.util.spec_from_file_location("tandem_launcher", path)
    module = importlib.util.module_from_spec(spec)
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = kept
    module.OUR_FILES.add(__file__)
    return module


class Template:
    """The process that imported the app, until `serve` returns: then this is one of its workers."""

    def __init__(self, launcher):
        self.launcher = launcher
        self.channel = socket.socket(fileno=int(os.environ.pop("TANDEM_FORK_FD")))
        self.channel.set_inheritable(False)
        self.strict = os.environ.pop("TANDEM_PRELOAD", "") == "strict"
        self.orders = launcher.read_orders()
        self.notifier = launcher.Notifier(self.orders.notify_fd)
        self.reported = set()
        self.native_threads = 0
        self.uvicorn = self.config = self.kept_sigterm = None

    def load(self):
        self.launcher.prepare(self.orders)
        self.listener = self.launcher.listening.Listening(self.orders.listen_fds)
        try:
            self.uvicorn, self.config = self.launcher.load_config(self.orders)
        except BaseException as error:
            self.launcher.fail_import(error, self.notifier)
        # Free now what the app left in cycles; a collection in a worker then neither walks nor copies shared memory.
        gc.collect()
        gc.freeze()
        self.check()

    def check(self):
        """Report what a fork would break, each finding once."""
        found = threads() + self.native() + connections(self.own_descriptors())
        new = [finding for finding in found if finding not in self.reported][:FINDINGS_MAX]
        if not new:
            return
        if self.strict:
            self.launcher.refuse(refusal(found), self.notifier)
        self.reported.update(new)
        message = "X_TANDEM_FORK_UNSAFE=" + json.dumps(new)
        self.notifier.send(message, patience=self.launcher.NOTIFY_PATIENCE)

    def native(self):
        native = native_threads()
        if len(native) > self.native_threads:
            native = lasting_threads(native)
        self.native_threads = len(native)
        return ["%d thread(s) of a native library" % len(native)] if native else []

    def own_descriptors(self):
        own = {self.channel.fileno(), *self.orders.listen_fds}
        return own | {self.notifier.socket.fileno()} if self.notifier.socket else own

    def serve(self):
        """Fork a worker for every request. Returns in each worker, with the request it was forked for."""
        self.kept_sigterm = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        self.notifier.send("READY=1", patience=self.launcher.NOTIFY_PATIENCE)
        while True:
            request, descriptors = self.receive()
            self.check()
            pid, error = fork_worker()
            if pid == 0:
                return request, descriptors
            for descriptor in descriptors:
                os.close(descriptor)
            answer = {"slot": request["slot"]}
            answer.update({"error": error} if error else {"pid": pid})
            self.channel.send(json.dumps(answer).encode())

    def receive(self):
        numbers = array.array("i")
        space = socket.CMSG_SPACE(DESCRIPTORS * numbers.itemsize)
        data, control, _, _ = self.channel.recvmsg(REQUEST_MAX, space, socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)  # Tandem wants no more workers of this template
        for level, kind, content in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
        return json.loads(data), list(numbers)

    def become_worker(self, request, descriptors):
        """Take over the worker's own descriptors and environment, and serve."""
        gate_fd, stdout, stderr, notify_fd = descriptors
        for source, target in ((stdout, 1), (stderr, 2)):
            os.dup2(source, target)
            os.close(source)
        self.channel.close()
        os.close(self.orders.gate_fd)
        if self.notifier.socket:
            self.notifier.socket.close()
        signal.signal(signal.SIGTERM, self.kept_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.environ.setdefault("TANDEM_APP", self.orders.app)
        os.environ.update(request["environment"])
        listen_fds = ",".join(map(str, self.orders.listen_fds))
        os.environ.update(TANDEM_LISTEN_FD=listen_fds, TANDEM_GATE_FD=str(gate_fd))
        os.environ.update(TANDEM_NOTIFY_FD=str(notify_fd))
        os.environ.pop("TANDEM_PRELOAD", None)
        write_mark(os.environ.get(MARK, ""))
        orders = self.launcher.read_orders()
        notifier = self.launcher.Notifier(orders.notify_fd)
        reseed()
        self.launcher.wait_at_gate(orders.gate_fd)
        self.launcher.serve(orders, notifier, self.uvicorn, self.config, self.listener)


def write_mark(mark):
    """Let the kernel show this worker's own mark, in place of the template's.

    What it forks without starting a program has the environment that the template was started with, as /proc shows it; by
    the mark there Tandem knows which worker a process belongs to that has left its group and its parent.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            # The name, in parentheses, is the second field; env_start and env_end are the 50th and the 51st (proc(5)).
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[47]), int(fields[48])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            content = b"\0" + memory.read(end - start)
            name = b"\0%s=" % MARK.encode()
            at = content.find(name)
            old = content[at + len(name) :].partition(b"\0")[0]
            if at >= 0 and len(old) == len(mark):
                memory.seek(start + at + len(name) - 1)
                memory.write(mark.encode())
    except (OSError, ValueError, IndexError):
        pass  # such processes then end with Tandem, as they do without it


def fork_worker():
    """Fork twice, so that the worker falls to Tandem. Answers (pid, None), or (None, what went wrong); in the worker
    (0, None), with SIGTERM blocked: one that is meant for it must not meet the template's way of taking it."""
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with warnings.catch_warnings():
            # Of threads, by Python 3.12 and later: `check` said which they are.
            warnings.simplefilter("ignore", DeprecationWarning)
            between = os.fork()
            if between == 0 and leave_worker(writer):
                os.close(reader)
                os.close(writer)
                return 0, None
    except OSError as error:
        os.close(reader)
        os.close(writer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        return None, "fork: %s" % error
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.close(writer)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    reap(between)
    return (int(said), None) if said.isdigit() else (None, said or "fork: the process in between was killed")


def leave_worker(writer):
    """In the process in between: fork the worker, tell its pid and end. True in the worker."""
    worker = None
    try:
        worker = os.fork()
        if worker == 0:
            return True
        # Before its pid is told: a signal to its group must reach it.
        os.setpgid(worker, worker)
        os.write(writer, b"%d" % worker)
    except OSError as error:
        os.write(writer, b"fork: %s" % str(error).encode())
    finally:
        if worker != 0:
            os._exit(0)


def reap(pid):
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # the app ignores SIGCHLD, which leaves nothing to reap


def reseed():
    """Give this worker random numbers of its own. `random` and `ssl` do it at a fork, numpy's old interface does not."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def threads():
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    return ['thread "%s"' % thread.name[:100] for thread in others]


def lasting_threads(native):
    """The threads that are still there after a fork: OpenBLAS and others end theirs before it, and start them again when
    they are needed (pthread_atfork(3))."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    reap(pid)
    deadline = time.monotonic() + SETTLE
    while native and time.monotonic() < deadline:
        time.sleep(0.005)
        native = native_threads()
    return native


def native_threads():
    """Threads that Python knows nothing of."""
    known = {thread.native_id for thread in threading.enumerate()}
    return [thread for thread in os.listdir("/proc/self/task") if int(thread) not in known]


def connections(own):
    """Streams that workers would share with each other. Not those in `own`."""
    counts = collections.Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) in own or not os.readlink("/proc/self/fd/" + name).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                counts[describe(sock, sock.getpeername())] += 1
        except OSError:
            continue  # closed already, or not connected
    counts.pop(None, None)
    return [text if count == 1 else "%d x %s" % (count, text) for text, count in sorted(counts.items())]


def describe(sock, peer):
    """What the socket is connected to; None when a fork does it no harm."""
    if sock.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        return None  # each datagram stands for itself: syslog, statsd
    host, port = os.environ.get("PGHOST", ""), os.environ.get("PGPORT", "5432")
    if sock.family == socket.AF_UNIX:
        if not peer:
            return None  # half of a pair: the process talks to itself, as an event loop does
        path = os.fsdecode(peer)
        kind = "database connection" if path == "%s/.s.PGSQL.%s" % (host, port) else "connection"
        return "%s to %s" % (kind, path[:100])
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address = peer[0].replace("::ffff:", "", 1)
    is_database = str(peer[1]) == port and address in addresses(host)
    shown = "[%s]" % address if ":" in address else address
    return "%s to %s:%d" % ("database connection" if is_database else "connection", shown, peer[1])


def addresses(host):
    try:
        return {found[4][0] for found in socket.getaddrinfo(host or "localhost", None)}
    except OSError:
        return set()


def refusal(found):
    return (
        'workers.preload = "strict" refuses to fork the application, whose import leaves behind:\n'
        + "".join("  %s\n" % finding for finding in found[:FINDINGS_MAX])
        + "Workers would share the connections, and have none of the threads. Open and start them in the application's\n"
        + "startup (its lifespan), which runs in every worker, or set workers.preload = true to be warned only."
    )


def main():
    template = Template(load_launcher())
    template.load()
    template.become_worker(*template.serve())


if __name__ == "__main__":
    main()
