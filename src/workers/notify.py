"""What a worker says to Tandem and hears from it. A part of launcher.py, loaded by it."""

import contextlib
import json
import socket
import sys

DATAGRAM_MAX = 32 * 1024
PATIENCE = 5.0  # seconds: for the messages that must arrive


class Notifier:
    """The sending end of what sd_notify(3) would say, on which orders come back."""

    def __init__(self, fd):
        self.socket = None if fd is None else socket.socket(fileno=fd)

    def send(self, message, patience=0.0):
        """Send one datagram; say whether it left. With no patience a full queue drops it, and never holds the loop."""
        if self.socket is None:
            return False
        try:
            self.socket.settimeout(patience)
            self.socket.send(message.encode("utf-8", "replace"))
        except OSError:
            return False
        return True

    def orders(self):
        """What Tandem has sent since the last look."""
        if self.socket is None:
            return
        self.socket.settimeout(0)
        with contextlib.suppress(OSError):
            while True:
                yield self.socket.recv(64).decode("utf-8", "replace")


class LoopLag:
    """How late the event loop wakes what sleeps on it: the longest since the last report."""

    def __init__(self, period):
        self.period, self.slept_at, self.longest = period, None, 0.0  # seconds

    def woke(self, now):
        if self.slept_at is not None:
            self.longest = max(self.longest, now - self.slept_at - self.period)

    def sleeps(self, now):
        self.slept_at = now

    def reported(self):
        self.longest = 0.0


def tell(notifier, name, text):
    """Hand the text to Tandem, which prints it once for all workers; print it only when Tandem does not listen."""
    message = text = text.encode("utf-8", "replace").decode()
    while True:
        datagram = name + "=" + json.dumps(message, ensure_ascii=False)
        if len(datagram.encode()) <= DATAGRAM_MAX:
            break
        message = "[...]\n" + message[len(message) // 4 + 6 :]  # the end says what went wrong
    if not notifier.send(datagram, patience=PATIENCE):
        sys.stderr.write(text + "\n")
