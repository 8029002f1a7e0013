"""The listening sockets by their descriptors, and whether the app has closed one. A part of launcher.py, loaded by it."""

import fcntl
import os
import socket
import sys


class Listening:
    """All of them."""

    def __init__(self, fds):
        self.all = [Listener(fd) for fd in fds]

    def sockets(self):
        return [listener.socket() for listener in self.all]

    def is_lost(self):
        """An app that closes every descriptor, as daemons once did, closes ours too: said on standard error."""
        lost = [listener.fd for listener in self.all if listener.is_lost()]
        if lost:
            text = "ERROR the application closed the listening socket (fd %d); this worker ends and is replaced"
            print(text % lost[0], file=sys.stderr, flush=True)
        return bool(lost)

    def put_back(self):
        for listener in self.all:
            listener.put_back()

    def let_go(self, loop):
        """Accept no more, on a loop that watches descriptors itself."""
        for listener in self.all:
            loop.remove_reader(listener.fd)

    def close(self):
        for listener in self.all:
            listener.close()

    def has_unix(self):
        return any(listener.family == socket.AF_UNIX for listener in self.all)

    def has_both_families(self):
        return any(listener.is_dual() for listener in self.all)


class Listener:
    """One listening socket."""

    def socket(self):
        """For the event loop. Of the family that the kernel tells."""
        sock = ListeningSocket(fileno=self.fd)
        sock.listener = self
        return sock

    def __init__(self, fd):
        self.fd = fd
        self.identity = identify(fd)
        self.spare = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, fd + 1)
        with socket.socket(fileno=os.dup(fd)) as sock:
            self.family = sock.family

    def is_dual(self):
        """Whether IPv4 comes in through IPv6, its addresses written as ::ffff:127.0.0.1."""
        if self.family != socket.AF_INET6:
            return False
        with socket.socket(fileno=os.dup(self.spare)) as sock:
            return not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    def is_lost(self):
        return identify(self.fd) != self.identity

    def put_back(self):
        """Give a lost descriptor back, so that the event loop can let go of it.

        The kernel's epoll goes on reporting a socket that is open elsewhere, as this one is in Tandem, and forgets it
        only by the descriptor's number: the loop would turn without a pause.
        """
        if identify(self.fd) is None and identify(self.spare) == self.identity:
            os.dup2(self.spare, self.fd, inheritable=False)

    def close(self):
        """Close it here too, or clients would still get through to a socket that nothing serves."""
        if identify(self.spare) == self.identity:
            os.close(self.spare)


class ListeningSocket(socket.socket):
    """Reports no client when the app has closed it: asyncio would log a traceback at every turn of the loop, hundreds
    before the next tick."""

    listener = None

    def accept(self):
        try:
            return super().accept()
        except OSError:
            if self.listener.is_lost():
                raise BlockingIOError from None
            raise


def identify(fd):
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino
