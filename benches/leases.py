"""Leases: what a look at a lease page costs, and how late workers are killed at their deadlines.

A configuration leads to deadlines in clusters only. Here leasehold's test gate stands in: a file is the authority.
"""

import contextlib
import os
import re
import select
import subprocess
import time
from pathlib import Path

import world
from rows import Results
from subjects import Baseline, Instance, Leasehold, Workspace
from world import SECOND, BenchError

LOADS = {"quiet": 0, "busy": 64}  # processes that take all the time they get
DEADLINES = 32  # a measurement; each worker has a lease of its own
APART_MS = 40  # from one deadline to the next
ROUNDS = 3
LATE = re.compile(r"\(([\d.]+)(us|ms|s) late\)")
UNITS_NS = {"us": 1000, "ms": world.MS, "s": SECOND}
UNTIL_WORD = 2  # of the page: the deadline on CLOCK_BOOTTIME


def start(workspace: Workspace, subject: Leasehold, fleets: dict[str, tuple[tuple[str, ...], str]]) -> Instance:
    """Each fleet is one worker, with these arguments and this lease, of an authority that is willing."""
    directory = workspace.new_directory(subject.name)
    authority(directory, "bench")
    text = 'schema = 1\n[node]\nname = "bench"\n'
    for name, (arguments, ttl) in fleets.items():
        command = ", ".join(f'"{word}"' for word in (str(workspace.leased), *arguments))
        text += f"""
[fleet.{name}]
command = [{command}]
stop = {{ timeout = "5s" }}
singleton = {{ scope = "test", flock = "{directory}/{name}.lock", authority = "{directory}/authority", ttl = "{ttl}", grace = "200ms", kill_margin = "200ms" }}
"""
    (directory / "leasehold.toml").write_text(text)
    command = ["/usr/bin/env", "LEASEHOLD_TEST_GATE=1", str(subject.binary), "run", "--quiet"]
    command += ["-c", str(directory / "leasehold.toml")]
    for kind in ("run", "state", "log"):
        (directory / kind).mkdir(mode=0o700)
        command += [f"--{kind}-dir", str(directory / kind)]
    return Instance(workspace, directory, command)


def authority(directory: Path, owner: str) -> None:
    """Who may hold from now on."""
    new = directory / "authority.new"
    new.write_text(owner)
    new.rename(directory / "authority")


# --- the page ----------------------------------------------------------------------------------------------------


def measure_page(workspace: Workspace, subject: Leasehold, results: Results) -> None:
    """A worker looks at its page as often as it can, in turns with round trips over loopback TCP."""
    file = workspace.new_directory("page") / "result"
    with start(workspace, subject, {"page": (("check", str(file)), "10s")}) as instance:
        world.wait_until(file.exists, 60, f"the page was looked at; leasehold said:\n{instance.last_words()}")
        look_ps, trip_ns = map(int, file.read_text().split())
        instance.stop()
    results.add("page", 1, "leasehold", look_ps / 1000)
    results.add("page", 1, "baseline", trip_ns)


# --- deadlines ---------------------------------------------------------------------------------------------------


def measure_deadlines(workspace: Workspace, subject: Baseline | Leasehold, load: str, results: Results) -> None:
    """Leases are not renewed any more: ns from each worker's deadline to its kill, and to the moment at which its end is seen.

    Between the two the worker dies, which takes processor time of its own; it executes nothing any more.
    """
    measure = floor if isinstance(subject, Baseline) else leases
    for _ in range(ROUNDS):
        sent_ns, late_ns = measure(workspace, subject, LOADS[load])
        for figure, samples in (("kill", sent_ns), ("end", late_ns)):
            for sample in samples:
                results.add(f"deadline_{figure}_{load}", 1, subject.name, sample)


def floor(workspace: Workspace, _subject: Baseline, busy: int) -> tuple[list[int], list[int]]:
    """A program that sleeps until each deadline and kills."""
    command = [str(workspace.leased), "floor", str(DEADLINES), str(APART_MS)]
    with neighbours(busy), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        lines = [program.stdout.readline().split() for _ in range(DEADLINES)]
        late_ns = lateness({int(pid): int(until_ns) for pid, until_ns in lines})
        return [int(line) for line in program.stdout], late_ns


def leases(workspace: Workspace, subject: Leasehold, busy: int) -> tuple[list[int], list[int]]:
    """Gated workers that are deaf to SIGTERM; their authority falls silent."""
    fleets = {f"job{n}": (("deaf",), f"{4000 + n * APART_MS}ms") for n in range(DEADLINES)}
    with start(workspace, subject, fleets) as instance:
        world.wait_until(lambda: len(leased(workspace)) == DEADLINES, 30, "workers hold their leases")
        with neighbours(busy):
            authority(instance.directory, "nobody")
            time.sleep(1.5)  # whoever was renewing is through
            try:
                deadlines = {pid: until_ns(pid) for pid in leased(workspace)}
            except (OSError, StopIteration):
                raise BenchError("a worker ended before its deadline was looked at") from None
            if min(deadlines.values()) < world.now_ns():
                raise BenchError("a deadline came before it was looked at")
            late_ns = lateness(deadlines)
            try:
                world.wait_until(lambda: len(kills(instance)) == DEADLINES, 30, "every kill is told of")
            except BenchError as error:
                raise BenchError(f"{error}; it said:\n{instance.last_words()}") from None
        sent_ns = kills(instance)
        instance.stop()
        return sent_ns, late_ns


def kills(instance: Instance) -> list[int]:
    """How late the keeper last killed each worker, by its own word; on a busy machine one may have lost a lease before."""
    events = world.get_json(instance.control, "/v1/events") or []
    texts = {event["worker"]: event["text"] for event in events if event["kind"] == "deadline-came"}
    words = (LATE.search(text) for text in texts.values())
    return [int(float(found[1]) * UNITS_NS[found[2]]) for found in words if found]


def leased(workspace: Workspace) -> set[int]:
    """Workers that run."""
    return {pid for pid, path in world.processes_of(workspace.directory).items() if path == str(workspace.leased)}


def until_ns(pid: int) -> int:
    """A worker's deadline, from its page."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    number = next(word.split(b"=")[1] for word in words if word.startswith(b"LEASEHOLD_PAGE_FD="))
    page = os.open(f"/proc/{pid}/fd/{int(number)}", os.O_RDONLY)
    try:
        return int.from_bytes(os.pread(page, 8, UNTIL_WORD * 8), "little")
    finally:
        os.close(page)


def lateness(deadlines: dict[int, int]) -> list[int]:
    """Waits for every end, before its neighbours where that is allowed: this is about them, not about us."""
    ends: dict[int, int] = {}
    with contextlib.ExitStack() as stack, contextlib.suppress(ProcessLookupError):
        stack.enter_context(urgent())
        poll = select.epoll()
        stack.callback(poll.close)
        pids = {}
        for pid in deadlines:
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            poll.register(pidfd, select.EPOLLIN)
            pids[pidfd] = pid
        give_up_ns = max(deadlines.values()) + 10 * SECOND
        while pids and world.now_ns() < give_up_ns:
            for pidfd, _ in poll.poll(1.0):
                ends[pids.pop(pidfd)] = world.now_ns()
                poll.unregister(pidfd)
    if ends.keys() != deadlines.keys():
        raise BenchError(f"{len(deadlines) - len(ends)} workers lived on after their deadlines")
    early = [pid for pid, end_ns in ends.items() if end_ns < deadlines[pid]]
    if early:
        raise BenchError(f"{len(early)} workers ended before their deadlines")
    return [ends[pid] - deadlines[pid] for pid in deadlines]


@contextlib.contextmanager
def urgent():
    """Us before all others."""
    allowed = False
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(60))
        allowed = True
    try:
        yield
    finally:
        if allowed:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def neighbours(count: int):
    """So many busy loops."""
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()
