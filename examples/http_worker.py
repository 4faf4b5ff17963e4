#!/usr/bin/env python3
"""An HTTP/1.1 worker on a listening socket that it inherits, so that no connection is refused while it is replaced.

    [fleet.web]
    command = ["/usr/bin/python3", "/srv/web/http_worker.py"]
    workers = 4
    ready = "notify"                    # READY=1, below
    stop = { timeout = "30s" }          # how long requests in flight may take once SIGTERM was sent
    [fleet.web.socket.http]
    listen = "127.0.0.1:8080"
    [fleet.web.health]
    watchdog = "15s"                    # WATCHDOG=1, below

Run by hand it binds 127.0.0.1:8080 itself.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def notify(text):
    """sd_notify(3): one datagram; nobody listens when run by hand."""
    name = os.environ.get("NOTIFY_SOCKET")
    if name:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            # A leading @ stands for the NUL byte of an abstract name.
            s.sendto(text.encode(), "\0" + name[1:] if name[0] == "@" else name)


def ping_interval():
    """Half of what the watchdog allows, in seconds, or None if there is none."""
    usec = int(os.environ.get("WATCHDOG_USEC", 0))
    return usec / 2e6 if usec else None


def listener(name):
    """The inherited socket of this name: they are descriptors 3, 4, ..., named in LISTEN_FDNAMES. Or one of our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        for i in range(int(os.environ["LISTEN_FDS"])):
            if i < len(names) and names[i] == name:
                return socket.socket(fileno=3 + i)
        raise SystemExit(f"no socket named {name} among those inherited: {names}")
    return socket.create_server(("127.0.0.1", 8080))


class Server(ThreadingHTTPServer):
    """A thread per connection. Knows its connections, so that it can end well."""

    def __init__(self, sock):
        super().__init__(sock.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        # The other workers wait on the same socket, and one of them may be faster: accept must not block.
        sock.setblocking(False)
        self.timeout = 0
        self.stopping = False
        self.served = 0
        self.busy = {}  # connection: is an answer owed to it?
        self.changed = threading.Condition()

    def process_request(self, request, client_address):
        with self.changed:
            self.busy[request] = True  # its first request is on its way
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        super().shutdown_request(request)
        with self.changed:
            self.busy.pop(request, None)
            self.changed.notify_all()

    def drain(self):
        """Yields now and then until the last request is answered. Connections that only wait for a next one are ended."""
        with self.changed:
            self.stopping = True
            for connection, busy in self.busy.items():
                if not busy:
                    with contextlib.suppress(OSError):  # already gone
                        connection.shutdown(socket.SHUT_RD)
            while self.busy:
                yield len(self.busy)
                self.changed.wait(timeout=ping_interval())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    timeout = 5  # seconds for which a client may say nothing
    wbufsize = -1  # head and body of an answer in one packet

    def parse_request(self):
        # Called when the first line of a request has come.
        with self.server.changed:
            self.server.busy[self.connection] = True
        return super().parse_request()

    def handle_one_request(self):
        super().handle_one_request()
        with self.server.changed:
            self.server.busy[self.connection] = False
            self.close_connection |= self.server.stopping

    def do_GET(self):
        if self.path == "/":
            about = {key: os.environ.get("LEASEHOLD_" + key.upper()) for key in ("fleet", "slot", "generation")}
            self.answer(200, "application/json", json.dumps(about | {"pid": os.getpid()}))
        elif self.path == "/healthz":
            # While draining too: who asks means the address, and that is served on by the others.
            self.answer(200, "text/plain", "ok")
        elif self.path.startswith("/slow/"):  # /slow/3: a request that takes three seconds, to see it survive a restart
            time.sleep(float(self.path.removeprefix("/slow/")))
            self.answer(200, "text/plain", "done")
        else:
            self.answer(404, "text/plain", "not found")

    def address_string(self):
        return self.client_address[0] if self.client_address else "unix"  # for the log

    def answer(self, status, kind, text):
        body = text.encode() + b"\n"
        self.server.served += 1
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def main():
    server = Server(listener("http"))
    # A signal interrupts no system call in Python; it does write a byte here, which wakes the loop.
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.append(number))

    loop = selectors.DefaultSelector()
    loop.register(server.socket, selectors.EVENT_READ)
    loop.register(wake, selectors.EVENT_READ)
    interval = ping_interval()
    next_ping = time.monotonic()
    notify(f"READY=1\nSTATUS=serving {server.socket.getsockname()}")
    while not stop:
        # From this loop and not from a thread of its own: a ping has to say that we still accept.
        if interval and time.monotonic() >= next_ping:
            notify(f"WATCHDOG=1\nSTATUS=served {server.served}, {len(server.busy)} connections")
            next_ping = time.monotonic() + interval
        if any(key.fileobj is server.socket for key, _ in loop.select(max(0, next_ping - time.monotonic()) if interval else None)):
            server.handle_request()

    # Connections from now on are accepted by the other workers, or wait in the socket's queue for the next one.
    notify("STOPPING=1")
    server.socket.close()
    for left in server.drain():
        notify(f"WATCHDOG=1\nSTATUS=draining, {left} connections left")


if __name__ == "__main__":
    main()
