"""A way to etcd's client port that takes time: carries bytes, so much later.

    far.py LISTEN_PORT MEMBER_PORT ONE_WAY_MS

Says "ready" when it listens, and "released FENCE TIME" when the word of a node comes by that it has given a lock back; times are
CLOCK_BOOTTIME in nanoseconds.
"""

import queue
import re
import socket
import sys
import threading
import time

RELEASED = re.compile(rb'/rel\x12.\{"fence":(\d+),', re.DOTALL)  # a put of that key: its name, then its value


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def carry(source: socket.socket, target: socket.socket, one_way_ns: int) -> None:
    """One direction: whoever reads notes when the bytes are due, and another thread sends them then."""
    waiting: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    threading.Thread(target=deliver, args=(waiting, target), daemon=True).start()
    chunk = b"more"
    while chunk:
        try:
            chunk = source.recv(65536)
        except OSError:
            chunk = b""
        at_ns = now_ns()
        waiting.put((at_ns + one_way_ns, chunk))
        for found in RELEASED.finditer(chunk):
            print("released", found[1].decode(), at_ns, flush=True)


def deliver(waiting: "queue.SimpleQueue[tuple[int, bytes]]", target: socket.socket) -> None:
    """What is due, when it is due; nothing: that was all."""
    while True:
        due_ns, chunk = waiting.get()
        time.sleep(max(0, due_ns - now_ns()) / 1e9)
        try:
            if not chunk:
                target.shutdown(socket.SHUT_RDWR)
                return
            target.sendall(chunk)
        except OSError:
            return


def main() -> None:
    port, member, one_way_ns = int(sys.argv[1]), int(sys.argv[2]), int(float(sys.argv[3]) * 1e6)
    listener = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", member))
        except OSError:
            client.close()
            continue
        for source, target in ((client, server), (server, client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=carry, args=(source, target, one_way_ns), daemon=True).start()


main()
