"""One member of etcd, the least that a write to it can cost, and a way to it that takes time."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import world
from subjects import Workspace
from world import BenchError

HERE = Path(__file__).resolve().parent


def program(name: str) -> str:
    """The path of etcd or etcdctl."""
    path = shutil.which(name)
    if path is None:
        raise BenchError(f"no {name} on this machine; Debian has it in etcd-server and etcd-client")
    return path


def version() -> str:
    """What `etcd --version` says first."""
    if shutil.which("etcd") is None:
        return "no etcd"
    result = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False)
    return result.stdout.splitlines()[0].replace(" Version:", "")


def described(directory: Path) -> str:
    """Which etcd, and what its writes wait for."""
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{version()}, one member, its data on {result.stdout.strip() or 'an unknown file system'}"


class Member:
    """It keeps its data in the workspace and is left as it comes, so that a write waits for fsync. Leaving the `with` block ends it."""

    def __init__(self, workspace: Workspace):
        self.directory = workspace.new_directory("etcd")
        self.port = world.free_port()
        here, beside = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{world.free_port()}"
        command = [program("etcd"), f"--data-dir={self.directory}/data", f"--initial-cluster=default={beside}"]
        command += [f"--listen-client-urls={here}", f"--advertise-client-urls={here}"]
        command += [f"--listen-peer-urls={beside}", f"--initial-advertise-peer-urls={beside}"]
        self.pid = world.spawn(command, self.directory / "output")

    def __enter__(self):
        try:
            world.wait_until(self.is_healthy, 30, "etcd answers", pause_s=0.05)
        except BenchError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        world.end({self.pid})
        shutil.rmtree(self.directory, ignore_errors=True)

    def is_healthy(self) -> bool:
        health = world.get_json(self.port, "/health")
        return health is not None and health["health"] == "true"

    def lock_command(self, name: str, *command: str) -> list[str]:
        """One command under a lock of etcdctl's."""
        endpoint = f"--endpoints=http://127.0.0.1:{self.port}"
        return ["/usr/bin/env", "ETCDCTL_API=3", program("etcdctl"), endpoint, "lock", name, "--", *command]


class Far:
    """A way to a member that takes so long, each way; and who hears when a node sends word that it gives a lock back."""

    def __init__(self, workspace: Workspace, member: Member, one_way_ms: float):
        self.port = world.free_port()
        self.heard = workspace.new_directory("far") / "heard"
        command = [sys.executable, str(HERE / "far.py"), str(self.port), str(member.port), str(one_way_ms)]
        self.pid = world.spawn(command, self.heard)

    def __enter__(self):
        world.wait_until(lambda: self.heard.exists() and "ready" in self.heard.read_text(), 10, "the way to etcd is open")
        return self

    def __exit__(self, *_):
        os.kill(self.pid, signal.SIGKILL)
        world.wait_for_exit(self.pid, 10)
        shutil.rmtree(self.heard.parent, ignore_errors=True)

    def released_ns(self, fence: int) -> int:
        """When the word arrived here that the holder with this fence has given the lock back: it was sent a moment before."""

        def said() -> list[int]:
            words = (line.split() for line in self.heard.read_text().splitlines())
            return [int(word[2]) for word in words if word[:2] == ["released", str(fence)]]

        world.wait_until(said, 5, f"the word that fence {fence} is given back")
        return said()[0]


class Writer:
    """A connection over which a key is put again and again, by gRPC: HTTP/2 without anything that one caller does not need."""

    DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
    ACK = END_STREAM = 1
    END_HEADERS = 4

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = -1
        self.unread = b""
        window = self._frame(self.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30))
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(self.SETTINGS, 0, 0, b"") + window)
        self.put()  # the first one opens the connection

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def put(self) -> int:
        """ns from the request to its answer, which etcd gives when the write is committed."""
        self.stream += 2
        message = b"\x0a\x05bench\x12\x01x"  # PutRequest { key, value }
        # :method POST, :scheme http; then names by their number in HPACK's static table, or in full.
        headers = b"\x83\x86" + b"\x04" + text(b"/etcdserverpb.KV/Put") + b"\x01" + text(b"localhost")
        headers += b"\x0f\x10" + text(b"application/grpc") + b"\x00" + text(b"te") + text(b"trailers")
        request = self._frame(self.HEADERS, self.END_HEADERS, self.stream, headers)
        request += self._frame(self.DATA, self.END_STREAM, self.stream, struct.pack(">BI", 0, len(message)) + message)
        begin_ns = world.now_ns()
        self.socket.sendall(request)
        if not self._is_answered():
            raise BenchError("etcd refused a put")
        return world.now_ns() - begin_ns

    def _is_answered(self) -> bool:
        """Until the end of the stream; an answer has data, a refusal has none."""
        has_data = False
        while True:
            size, kind, flags, stream = self._head()
            payload = self._read(size)
            if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
                self.socket.sendall(self._frame(kind, self.ACK, 0, payload if kind == self.PING else b""))
            if kind == self.GOAWAY:
                raise BenchError("etcd wants no puts")
            if stream == self.stream:
                has_data = has_data or kind == self.DATA
                if kind in (self.DATA, self.HEADERS) and flags & self.END_STREAM:
                    return has_data

    def _head(self) -> tuple[int, int, int, int]:
        high, low, kind, flags, stream = struct.unpack(">BHBBI", self._read(9))
        return high << 16 | low, kind, flags, stream & 0x7FFFFFFF

    def _read(self, size: int) -> bytes:
        while len(self.unread) < size:
            more = self.socket.recv(65536)
            if not more:
                raise BenchError("etcd closed the connection")
            self.unread += more
        head, self.unread = self.unread[:size], self.unread[size:]
        return head

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def text(value: bytes) -> bytes:
    """A string of HPACK, as it is."""
    return bytes([len(value)]) + value
