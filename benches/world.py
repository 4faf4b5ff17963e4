"""What the benchmarks see of the world: clocks, processes, reports of workers, HTTP. It decides nothing."""

import collections
import contextlib
import ctypes
import http.client
import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

MS = 1_000_000
SECOND = 1000 * MS


class BenchError(Exception):
    """A measurement could not be made; the message says why. The others go on."""


def now_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds: the clock the workers report in."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wait_until(condition, timeout_s: float, what: str, pause_s: float = 0.001) -> int:
    """Polls `condition` and returns the instant (ns) at which it was first seen true."""
    deadline = now_ns() + int(timeout_s * SECOND)
    while not condition():
        if now_ns() > deadline:
            raise BenchError(f"{what}: not within {timeout_s:g} s")
        time.sleep(pause_s)
    return now_ns()


# --- processes ---------------------------------------------------------------------------------------------------


def become_subreaper() -> None:
    """Orphans of what we start come to us, so that we can end and reap them whatever their parents forgot."""
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def spawn(command: list[str], output: Path | str, environment: dict[str, str] | None = None) -> int:
    """Starts a command in a process group of its own and returns its pid; stdout and stderr go to `output`."""
    return os.posix_spawn(
        command[0],
        command,
        environment if environment is not None else os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setpgroup=0,
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores both, and what is ignored is inherited
    )


def wait_for_exit(pid: int, timeout_s: float) -> int | None:
    """Waits for a child and returns its exit code (negative: the signal), or None when the time is over."""
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], timeout_s)[0]:
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)


def run_timed(command: list[str]) -> int:
    """Runs a command with its output thrown away and returns how long the whole process took, in ns."""
    begin_ns = now_ns()
    pid = spawn(command, "/dev/null")
    _, status = os.waitpid(pid, 0)
    took_ns = now_ns() - begin_ns
    if status != 0:
        raise BenchError(f"{' '.join(command)}: exit {os.waitstatus_to_exitcode(status)}")
    return took_ns


def processes_of(directory: Path) -> dict[int, str]:
    """Living processes (pid: path) whose executable lies in this directory; a zombie has none and does not count."""
    processes = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                executable = os.readlink(f"/proc/{name}/exe")
                if executable.startswith(f"{directory}/"):
                    processes[int(name)] = executable
    return processes


def children_of(pid: int) -> list[int]:
    """Pids of the direct children of all threads of a process."""
    children = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            children += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    return [int(child) for child in children]


def command_line(pid: int) -> bytes:
    """The argument words of a process, each ended by a NUL; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def pss_bytes(pid: int) -> int:
    """Proportional set size: shared pages are divided by the number of those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"no Pss of process {pid}")


def processor_ns(pid: int) -> int:
    """Processor time that the living threads of a process have used (Documentation/scheduler/sched-stats.rst)."""
    tasks = os.listdir(f"/proc/{pid}/task")
    return sum(int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) for task in tasks)


def wake_ups(pid: int) -> int:
    """How often the threads of a process have gone to sleep, which is as often as they were woken."""
    return sum(
        int(line.split()[1])
        for task in os.listdir(f"/proc/{pid}/task")
        for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches:")
    )


def end(pids: set[int]) -> None:
    """SIGKILL for processes we (or ours) started, and reaping of those that are our children by now."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    reap_orphans()


def reap_orphans() -> None:
    """Reaps every child of ours that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


# --- reports of workers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """A worker has started, by its own clock readings at the top of main and at its very first instruction."""

    at_ns: int
    pid: int
    first_ns: int


@dataclass(frozen=True)
class Flood:
    """A worker has written everything it was asked for."""

    begin_ns: int
    end_ns: int
    bytes: int


class Reports:
    """The socket to which workers report, and what they have said since the last `forget`."""

    def __init__(self, path: Path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.forget()

    def forget(self) -> None:
        """Throws away everything said so far, unread datagrams included."""
        self.starts: dict[str, list[Start]] = collections.defaultdict(list)
        self.closes: list[int] = []
        self.told = False
        self.floods: dict[str, Flood] = {}
        self.read_all()
        self.starts.clear()
        self.floods.clear()
        self.closes.clear()
        self.told = False

    def read_all(self) -> None:
        """Reads what is there and does not wait."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(self.socket.recv(256))

    def read_until(self, condition, timeout_s: float, what: str) -> None:
        """Reads reports until `condition()` holds after one of them."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise BenchError(f"{what}: not within {timeout_s:g} s ({len(self.starts)} workers have reported)")
            self.socket.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                self._take(self.socket.recv(256))

    def _take(self, datagram: bytes) -> None:
        word, at_ns, pid, worker, *rest = datagram.decode().split()
        if word == "start":
            self.starts[worker].append(Start(int(at_ns), int(pid), int(rest[0])))
        elif word == "done":
            self.floods[worker] = Flood(int(rest[0]), int(at_ns), int(rest[1]))
        elif word == "closed":
            self.closes.append(int(at_ns))
        elif word == "told":
            self.told = True

    def pids(self) -> dict[str, int]:
        """The process each worker was last seen to be."""
        return {worker: starts[-1].pid for worker, starts in self.starts.items()}

    def close(self) -> None:
        self.socket.close()


# --- HTTP --------------------------------------------------------------------------------------------------------


class Connection(http.client.HTTPConnection):
    """HTTP to a unix socket (a path) or to a TCP port of the loopback (a number)."""

    def __init__(self, address: Path | int, timeout_s: float):
        super().__init__("localhost", timeout=timeout_s)
        self.address = address

    def connect(self) -> None:
        if isinstance(self.address, int):
            self.sock = socket.create_connection(("127.0.0.1", self.address), timeout=self.timeout)
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.address))


def get(address: Path | int, path: str, timeout_s: float = 10) -> tuple[int, bytes]:
    """One GET on a connection of its own: (status code, body)."""
    connection = Connection(address, timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def get_json(address: Path | int, path: str) -> dict | None:
    """The decoded body of a 200, or None for anything else that can happen to a request."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        code, body = get(address, path)
        if code == 200:
            return json.loads(body)
    return None


def free_port() -> int:
    """A TCP port of the loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
