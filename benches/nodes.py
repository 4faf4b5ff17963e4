"""What a cluster costs: a lock that nobody else wants, a worker that moves to another node, a node that dies.

All nodes are on this machine, with directories, a name and a lock file of their own each, and one member of etcd is there for them.
"""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import etcd
import world
from leases import urgent
from rows import Results
from subjects import HEALTHY_S, Instance, Leasehold, Workspace, own_cgroups, remove_cgroups
from world import MS, SECOND, BenchError

SITES = {"site": 0, "far": 50}  # ms to etcd, each way; none: nothing is put in between
NAMES = ("a", "b")
ACQUIRE_SAMPLES = {"site": 50, "far": 10}
COMMAND_SAMPLES = 20
HANDOVER_SAMPLES = 20
FAILOVER_SAMPLES = 3
STOP_SAMPLES = 5


@dataclass(frozen=True)
class Times:
    """Of a lease, in seconds. The next one waits `takeover_s`, by a clock that may be fast: a twelfth longer."""

    ttl_s: float = 10
    takeover_s: float = 1
    kill_margin_s: float = 1
    grace_s: float = 2

    @property
    def name(self) -> str:
        """Behind the names of samples; nothing where nothing is configured."""
        return "" if self == DEFAULT else f"_{self.ttl_s:g}"


DEFAULT = Times()
# A shorter lease leaves no time for the usual grace.
QUICK, SLOW = Times(ttl_s=5, kill_margin_s=0.5, grace_s=0.5), Times(ttl_s=20)


# --- nodes -------------------------------------------------------------------------------------------------------


class Node:
    """A place for a daemon, which can end and begin again in it."""

    def __init__(self, workspace: Workspace, subject: Leasehold, name: str, port: int, times: Times):
        self.times = times
        self.workspace = workspace
        self.name = name
        self.directory = workspace.new_directory(f"node-{name}")
        self.instance: Instance | None = None
        self.cgroups: set[Path] = set()
        configuration = self.directory / "leasehold.toml"
        configuration.write_text(f"""schema = 1
[node]
name = "{name}"
restart_rate = "100000/s"
restart_burst = 100000
[etcd]
endpoints = ["http://127.0.0.1:{port}"]
cluster = "bench"
lease_ttl = "{times.ttl_s:g}s"
[fleet.bench]
command = ["{workspace.worker}", "-i", "{name}", "pause"]
env = {{ BENCH_SOCKET = "{workspace.reports.path}" }}
restart = {{ policy = "always", burst = 100000, window = "1s", healthy = "{HEALTHY_S:g}s" }}
singleton = {{ scope = "cluster", flock = "{workspace.new_lock()}", containment = "{containment()}", \
grace = "{times.grace_s * 1000:g}ms", kill_margin = "{times.kill_margin_s * 1000:g}ms", takeover_delay = "{times.takeover_s:g}s" }}
""")
        self.command = [str(subject.binary), "run", "-c", str(configuration), "--quiet"]
        for kind in ("run", "state", "log"):
            (self.directory / kind).mkdir(mode=0o700)
            self.command += [f"--{kind}-dir", str(self.directory / kind)]

    def start(self, stack: contextlib.ExitStack) -> None:
        """The worker's reports so far are forgotten."""
        self.instance = stack.enter_context(Instance(self.workspace, self.directory, self.command))

    def gate(self) -> dict:
        """What it says of its lock; empty while it says nothing."""
        status = world.get_json(self.instance.control, "/v1/status")
        return (status["fleets"][0]["gate"] or {}) if status else {}

    def wait_until_it_holds(self) -> None:
        """Its worker runs, too."""
        reports = self.workspace.reports
        reports.read_until(lambda: reports.starts[self.name], 30, f"a worker of node {self.name}")
        self._wait("it holds", lambda gate: gate.get("deadline_in_ms") is not None)

    def wait_until_it_waits(self) -> None:
        """It stands in the queue, and knows behind whom."""
        self._wait("it stands by", lambda gate: "held by" in (gate.get("holder") or ""))

    def wait_until_it_is_out(self) -> None:
        """Nothing is left of its worker, nor of its place in the queue."""
        self._wait("it is out", lambda gate: gate.get("state") == "shut" and not self.workspace.workers())

    def _wait(self, what: str, condition) -> None:
        try:
            world.wait_until(lambda: condition(self.gate()), 30, f"node {self.name}: {what}", pause_s=0.02)
        except BenchError as error:
            raise BenchError(f"{error}; it said:\n{self.instance.last_words()}") from None

    def post(self, path: str, **body) -> "Request":
        """Asks, and does not wait for the answer."""
        return Request(self.instance.control, path, body)

    def figure(self, name: str) -> float:
        """One of /metrics, by its whole name with labels."""
        _, text = world.get(self.instance.control, "/metrics")
        for line in text.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def processes(self) -> set[int]:
        """The keeper, the supervisor, and everything below them."""
        found, unseen = set(), {self.instance.pid}
        while unseen:
            pid = unseen.pop()
            found.add(pid)
            unseen |= set(world.children_of(pid)) - found
        return found

    def die(self) -> None:
        """As if the power failed: nobody of it does anything any more when the first one is killed."""
        workers, pids = self.workspace.workers(), self.processes()
        self.cgroups = set().union(*(own_cgroups(pid) for pid in pids))
        # The keeper before those whom it would miss; the worker goes on until it is killed.
        in_order = sorted(pids, key=lambda pid: pid != self.instance.pid)
        for number, whom in ((signal.SIGSTOP, [pid for pid in in_order if pid not in workers]), (signal.SIGKILL, in_order)):
            for pid in whom:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def bury(self) -> None:
        """Removes what only a dead keeper leaves."""
        self.instance.gone = world.wait_for_exit(self.instance.pid, 10) is not None
        remove_cgroups(self.cgroups)


class Request:
    """A POST on a connection of its own, which is open before the clock is read."""

    def __init__(self, control: Path, path: str, body: dict):
        self.connection = world.Connection(control, 30)
        self.connection.connect()
        self.sent_ns = world.now_ns()
        self.connection.request("POST", path, json.dumps(body), {"Connection": "close", "Content-Type": "application/json"})

    def answer(self) -> None:
        """Raises if it is a refusal."""
        response = self.connection.getresponse()
        text = response.read()
        self.connection.close()
        if response.status >= 300:
            raise BenchError(f"{response.status}: {text.decode(errors='replace')}")


def containment() -> str:
    """The best that may be asked for here."""
    return "strict" if os.geteuid() == 0 else "weak"


@dataclass
class Site:
    """A member of etcd, the way to it, and nodes that have not begun."""

    name: str
    member: etcd.Member
    way: etcd.Far | None
    writer: etcd.Writer
    nodes: tuple[Node, ...]
    stack: contextlib.ExitStack


@contextlib.contextmanager
def site(workspace: Workspace, subject: Leasehold, name: str, nodes: int, times: Times = DEFAULT) -> Iterator[Site]:
    """Everything ends with it."""
    with contextlib.ExitStack() as stack:
        member = stack.enter_context(etcd.Member(workspace))
        way = stack.enter_context(etcd.Far(workspace, member, SITES[name])) if SITES[name] else None
        port = way.port if way else member.port
        writer = stack.enter_context(etcd.Writer(port))
        places = tuple(Node(workspace, subject, node, port, times) for node in NAMES[:nodes])
        yield Site(name, member, way, writer, places, stack)
        for node in places:
            if node.instance is not None and not node.instance.gone:
                node.instance.stop()


# --- what must not be --------------------------------------------------------------------------------------------


@dataclass
class Reign:
    """A worker that runs under the lock."""

    pid: int
    fence: int
    starts: int


def reign(workspace: Workspace) -> Reign:
    """The only one."""
    pids = workspace.workers()
    if len(pids) != 1:
        raise BenchError(f"{len(pids)} workers run where one should")
    (pid,) = pids
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    fences = [int(word.split(b"=")[1]) for word in words if word.startswith(b"LEASEHOLD_FENCE=")]
    if len(fences) != 1:
        raise BenchError(f"a worker with {len(fences)} fences")
    return Reign(pid, fences[0], count_starts(workspace))


def count_starts(workspace: Workspace) -> int:
    """So many have reported."""
    workspace.reports.read_all()
    return sum(map(len, workspace.reports.starts.values()))


def succeed(workspace: Workspace, old: Reign, ended_ns: int, heir: Node, bound_s: float, results: Results) -> world.Start:
    """Waits for the first report of the next one, and looks whether it came after the last one's end, with a later fence, and alone."""
    reports = workspace.reports
    reports.read_until(lambda: count_starts(workspace) > old.starts, bound_s, "a successor")
    heir.wait_until_it_holds()
    new, start = reign(workspace), reports.starts[heir.name][-1]
    results.must_be_zero("cluster_overlap", 1, "leasehold", int(start.first_ns < ended_ns))
    results.must_be_zero("cluster_fence", 1, "leasehold", int(new.fence <= old.fence))
    results.must_be_zero("cluster_unasked", 1, "leasehold", new.starts - old.starts - 1)
    return start


class Witness:
    """Sees a worker's end, before its neighbours where that is allowed."""

    def __init__(self, pid: int):
        self.pidfd = os.pidfd_open(pid)

    def end_ns(self, bound_s: float) -> int:
        try:
            seen = select.select([self.pidfd], [], [], bound_s)[0]
            at_ns = world.now_ns()
        finally:
            os.close(self.pidfd)
        if not seen:
            raise BenchError(f"the worker goes on {bound_s:g} s after it was to end")
        return at_ns


def ended(old: Reign, cause, bound_s: float = 10) -> int:
    """Does what ends a worker, and says when that was."""
    witness = Witness(old.pid)
    with urgent():
        cause()
        return witness.end_ns(bound_s)


# --- acquire -----------------------------------------------------------------------------------------------------


def measure_acquire(workspace: Workspace, subject: Leasehold, where: str, results: Results) -> None:
    """A node that is there starts a worker whose lock nobody else wants; in turns with puts, each of which is one write."""
    with site(workspace, subject, where, 1) as place:
        (node,) = place.nodes
        node.start(place.stack)
        node.wait_until_it_holds()
        jitter = random.Random(where)
        for _ in range(ACQUIRE_SAMPLES[where]):
            node.post("/v1/stop", names=["bench"]).answer()
            node.wait_until_it_is_out()
            time.sleep(jitter.uniform(0.05, 0.1))  # in step with nobody's loop
            put_ns = place.writer.put()
            for figure in (f"acquire_txn_{where}", f"acquire_start_{where}"):
                results.add(figure, 1, "baseline", put_ns)
            time.sleep(jitter.uniform(0.05, 0.1))
            sample_acquire(workspace, node, where, results)
    results.must_be_zero("cluster_left", 1, subject.name, len(workspace.processes()))


def sample_acquire(workspace: Workspace, node: Node, where: str, results: Results) -> None:
    """From the request to the worker; and what the supervisor says of the only write in between, the one that joins the queue."""
    writes_before, took_before = writes(node)
    starts = workspace.reports.starts[node.name]
    seen = len(starts)
    request = node.post("/v1/start", names=["bench"])
    workspace.reports.read_until(lambda: len(starts) > seen, 30, "a worker")
    results.add(f"acquire_start_{where}", 1, "leasehold", starts[-1].first_ns - request.sent_ns)
    request.answer()
    node.wait_until_it_holds()
    writes_after, took_after = writes(node)
    results.add("acquire_writes", 1, "leasehold", writes_after - writes_before)
    if writes_after == writes_before + 1:
        results.add(f"acquire_txn_{where}", 1, "leasehold", (took_after - took_before) * SECOND)


def writes(node: Node) -> tuple[int, float]:
    """So many transactions that write were answered, after so many seconds together."""
    name = "leasehold_etcd_request_duration_seconds"
    return int(node.figure(f'{name}_count{{op="write"}}')), node.figure(f'{name}_sum{{op="write"}}')


def measure_commands(workspace: Workspace, subject: Leasehold, results: Results) -> None:
    """One command under a lock of the cluster, whole processes, in turns."""
    with site(workspace, subject, "site", 0) as place:
        directory = workspace.new_directory("command")
        configuration = directory / "leasehold.toml"
        endpoint = f'endpoints = ["http://127.0.0.1:{place.member.port}"]'
        name = f"bench-{os.getpid()}"
        configuration.write_text(f'schema = 1\n[node]\nname = "bench"\n[etcd]\n{endpoint}\ncluster = "{name}"\n')
        run = [str(workspace.worker), "exit"]
        ours = [str(subject.binary), "lock", "--cluster", "-c", str(configuration), name, "--", *run]
        if containment() == "weak":
            ours.insert(2, "--weak")
        try:
            for _ in range(COMMAND_SAMPLES):
                results.add("acquire_command", 1, "baseline", world.run_timed(place.member.lock_command(name, *run)))
                results.add("acquire_command", 1, "leasehold", world.run_timed(ours))
        finally:
            for file in subject.lock_files(name):  # in a directory with the cluster's name, beside those of the machine's own locks
                shutil.rmtree(file.parent.parent / name, ignore_errors=True)
    results.must_be_zero("cluster_left", 1, subject.name, len(workspace.processes()))


# --- hand-over ---------------------------------------------------------------------------------------------------


def measure_handover(workspace: Workspace, subject: Leasehold, where: str, results: Results) -> None:
    """`singletons move` to and fro; in turns with puts, and with restarts in place, which are all that a hand-over is besides."""
    with site(workspace, subject, where, 2) as place:
        holder, waiter = place.nodes
        both(place.stack, holder, waiter)
        jitter = random.Random(where)
        for turn in range(HANDOVER_SAMPLES):
            waiter.wait_until_it_waits()
            if turn % 2 == 0:
                sample_restart(workspace, place, holder, results)
            time.sleep(jitter.uniform(0.2, 0.3))
            sample_handover(workspace, place, holder, waiter, results)
            holder, waiter = waiter, holder
        waiter.wait_until_it_waits()
    results.must_be_zero("cluster_left", 1, subject.name, len(workspace.processes()))
    allow(where, results)


def allow(where: str, results: Results) -> None:
    """Beside the hand-overs what they may take: 1.2 round trips, and the rest as long as where no lock changes hands."""
    restart_ns = statistics.median(results.samples[f"restart_{where}", 1, "leasehold"])
    put_ns = statistics.median(results.samples[f"put_{where}", 1, "baseline"])
    for figure in ("end", "sent"):
        if (f"handover_{figure}_{where}", 1, "leasehold") in results.samples:
            results.samples[f"handover_{figure}_{where}", 1, "baseline"] = [1.2 * put_ns + restart_ns]


def both(stack: contextlib.ExitStack, holder: Node, waiter: Node) -> None:
    """One after the other."""
    holder.start(stack)
    holder.wait_until_it_holds()
    waiter.start(stack)
    waiter.wait_until_it_waits()


def sample_restart(workspace: Workspace, place: Site, holder: Node, results: Results) -> None:
    """A worker that is killed is started again under the lock, which stays: from its end to the next one's first instruction."""
    time.sleep(HEALTHY_S + 0.2)
    old = reign(workspace)
    ended_ns = ended(old, lambda: os.kill(old.pid, signal.SIGKILL))
    workspace.reports.read_until(lambda: count_starts(workspace) > old.starts, 30, "a replacement")
    start = workspace.reports.starts[holder.name][-1]
    results.add(f"restart_{place.name}", 1, "leasehold", start.first_ns - ended_ns)


def sample_handover(workspace: Workspace, place: Site, holder: Node, waiter: Node, results: Results) -> None:
    """From the request, from the old worker's end, and from the word that its lock is given back, to the successor's first instruction."""
    old = reign(workspace)
    requests = []
    results.add(f"put_{place.name}", 1, "baseline", place.writer.put())
    ended_ns = ended(old, lambda: requests.append(holder.post("/v1/singletons/bench/move", to=waiter.name)))
    start = succeed(workspace, old, ended_ns, waiter, 30, results)
    requests[0].answer()
    results.add(f"handover_asked_{place.name}", 1, "leasehold", start.first_ns - requests[0].sent_ns)
    results.add(f"handover_end_{place.name}", 1, "leasehold", start.first_ns - ended_ns)
    if place.way:
        sent_ns = place.way.released_ns(old.fence)
        results.add(f"handover_sent_{place.name}", 1, "leasehold", start.first_ns - sent_ns)


# --- failover ----------------------------------------------------------------------------------------------------


def measure_failover(workspace: Workspace, subject: Leasehold, results: Results) -> None:
    """The holder's node dies, as a whole, at any time between two renewals; and, to compare, its daemon is stopped."""
    fail_over(workspace, subject, results, DEFAULT, (sample_stop,) * STOP_SAMPLES)
    for times in (QUICK, SLOW):
        fail_over(workspace, subject, results, times, ())


def fail_over(workspace: Workspace, subject: Leasehold, results: Results, times: Times, before: tuple) -> None:
    """With leases of these times; deaths come last."""
    with site(workspace, subject, "site", 2, times) as place:
        holder, waiter = place.nodes
        both(place.stack, holder, waiter)
        # Another time in each repetition.
        jitter = random.Random(len(results.samples[f"failover_end{times.name}", 1, "leasehold"]))
        for sample in before + (sample_death,) * FAILOVER_SAMPLES:
            waiter.wait_until_it_waits()
            time.sleep(jitter.uniform(0.5, 0.5 + times.ttl_s / 5))
            sample(workspace, place, (holder, waiter), results)
            holder.start(place.stack)
            holder, waiter = waiter, holder
        waiter.wait_until_it_waits()
    results.must_be_zero("cluster_left", 1, subject.name, len(workspace.processes()))


def sample_stop(workspace: Workspace, place: Site, nodes: tuple[Node, Node], results: Results) -> None:
    """SIGTERM for the holder's daemon: from its worker's end."""
    holder, waiter = nodes
    old = reign(workspace)
    put_ns = place.writer.put()
    ended_ns = ended(old, lambda: os.kill(holder.instance.pid, signal.SIGTERM))
    start = succeed(workspace, old, ended_ns, waiter, 30, results)
    holder.instance.gone = world.wait_for_exit(holder.instance.pid, 30) is not None
    results.add("failover_stop", 1, "leasehold", start.first_ns - ended_ns)
    results.add("failover_stop", 1, "baseline", put_ns)


def sample_death(workspace: Workspace, _place: Site, nodes: tuple[Node, Node], results: Results) -> None:
    """From the worker's end; and from the last renewal, which is what the time of a lease counts from."""
    holder, waiter = nodes
    times = holder.times
    old = reign(workspace)
    renewed_ns = last_renewal_ns(holder)
    ended_ns = ended(old, holder.die)
    due_s = times.ttl_s + times.takeover_s
    start = succeed(workspace, old, ended_ns, waiter, due_s + 20, results)
    holder.bury()
    results.add(f"failover_end{times.name}", 1, "leasehold", start.first_ns - ended_ns)
    results.add(f"failover_renewal{times.name}", 1, "leasehold", start.first_ns - renewed_ns)
    results.add(f"failover_renewal{times.name}", 1, "baseline", due_s * SECOND)


def last_renewal_ns(holder: Node) -> int:
    """When the last renewal that counts was sent, from the deadline that it led to (ARCHITECTURE.md, why two cannot run)."""
    asked_ns = world.now_ns()
    left_ms = holder.gate()["deadline_in_ms"]
    kill_s = 0.92 * holder.times.ttl_s - 0.35 - holder.times.kill_margin_s
    return asked_ns + int(left_ms * MS - kill_s * SECOND)
