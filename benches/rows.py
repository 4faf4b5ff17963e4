"""The measurements, one function a row. Each notes samples and faults; none fails because something was slow."""

import collections
import contextlib
import http.client
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

import world
from subjects import HEALTHY_S, Baseline, Fleet, Instance, Leasehold, Workspace
from world import SECOND, BenchError

FLEET_ROWS = ("up", "memory", "idle", "status", "crash", "stop")  # measured on one fleet, in this order
CLUSTER_ROWS = ("acquire", "handover", "failover")  # with an etcd
OTHER_ROWS = ("sampling", "log", "grandchildren", "kill", "takeover", "lock", "page", "deadline")
ROWS = (*FLEET_ROWS, *OTHER_ROWS, *CLUSTER_ROWS)
LINE_BYTES = 100
WRITE_SIZES = (64 * 1024, 4 * 1024)
LOG_RUNS = 3  # a repetition: who runs on which core makes single runs differ by a factor of two

SETTLE_S = 3.0  # after the start: timers that belong to it (restart back-off, readiness) have run out
STATUS_SAMPLES = 20
CRASH_SAMPLES = 200
CRASHES_PER_WORKER = 5
SUPERVISOR_KILLS = 3
KILL_GAP_S = 1.5
TAKEOVERS = ("stop", "kill", "flock")  # how the holder ends
TAKEOVER_SAMPLES = 20
LOCK_SAMPLES = 50
FLOODS = 2
FLOOD_RATE = 25_000_000  # bytes per second and worker while the supervisor is being killed


@dataclass
class Options:
    """How much to measure: the rows, seconds of idleness, bytes of log."""

    rows: tuple[str, ...]
    idle_s: float
    log_bytes: int


@dataclass
class Results:
    """Samples by (figure, number of workers, subject), and what must not have happened but did."""

    samples: dict[tuple[str, int, str], list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    faults: list[str] = field(default_factory=list)

    def add(self, figure: str, workers: int, subject: str, value: float) -> None:
        self.samples[figure, workers, subject].append(value)

    def must_be_zero(self, figure: str, workers: int, subject: str, value: int) -> None:
        """A figure whose every sample is a matter of being correct."""
        self.add(figure, workers, subject, value)
        if value != 0:
            self.faults.append(f"{subject}, N={workers}: {figure.replace('_', ' ')} = {value}, must be 0")


# --- one fleet: up, memory, idle, status, crash, stop ------------------------------------------------------------


def measure_fleet(
    workspace: Workspace, subject: Baseline | Leasehold, workers: int, options: Options, results: Results
) -> None:
    """Starts N workers that pause, takes the figures asked for, and stops."""
    with subject.start(Fleet(workers, ("pause",))) as instance:
        instance.wait_for_workers(workers)
        last_ns = max(starts[-1].at_ns for starts in workspace.reports.starts.values())
        results.add("up", workers, subject.name, last_ns - instance.started_ns)
        expected_starts = collections.Counter(workspace.reports.starts.keys())
        if "memory" in options.rows or "idle" in options.rows:
            time.sleep(SETTLE_S)
        if "memory" in options.rows:
            results.add("memory", workers, subject.name, sum(map(world.pss_bytes, instance.own_pids())))
        if "idle" in options.rows:
            results.add("idle", workers, subject.name, wake_ups_per_second(instance, options.idle_s))
        if "status" in options.rows:
            command = status_command(subject, instance, workers)
            for _ in range(STATUS_SAMPLES):
                results.add("status", workers, subject.name, world.run_timed(command))
        if "crash" in options.rows:
            for latency_ns in crash_latencies(workspace.reports, workers, expected_starts):
                results.add("crash", workers, subject.name, latency_ns)
        results.must_be_zero("lost_or_doubled", workers, subject.name, sum(count_workers(workspace, expected_starts)))
        results.add("stop", workers, subject.name, instance.stop())
        results.must_be_zero("left", workers, subject.name, len(workspace.processes()))


def wake_ups_per_second(instance: Instance, seconds: float) -> float:
    """Of all threads of keeper and supervisor (or of the baseline), while nobody asks anything."""
    pids = instance.own_pids()
    before, begin_ns = sum(map(world.wake_ups, pids)), world.now_ns()
    time.sleep(seconds)
    return (sum(map(world.wake_ups, pids)) - before) * SECOND / (world.now_ns() - begin_ns)


def measure_sampling(workspace: Workspace, subject: Leasehold, workers: int, options: Options, results: Results) -> None:
    """What it costs to follow the load of N workers that do nothing: share of one core, of keeper and supervisor together."""
    with subject.start(Fleet(workers, ("pause",), follows=True)) as instance:
        instance.wait_for_workers(workers)
        time.sleep(SETTLE_S + 2)
        pids = instance.own_pids()
        before, begin_ns = sum(map(world.processor_ns, pids)), world.now_ns()
        time.sleep(2 * options.idle_s)
        used = sum(map(world.processor_ns, pids)) - before
        results.add("sampling", workers, subject.name, used / (world.now_ns() - begin_ns))
        instance.stop()
        results.must_be_zero("left", workers, subject.name, len(workspace.processes()))


def status_command(subject: Baseline | Leasehold, instance: Instance, workers: int) -> list[str]:
    """The command to time; of leasehold first waits until its answer shows every worker running."""
    if isinstance(subject, Leasehold):
        wait_for_status(instance, workers)
    return subject.status_command(instance)


def crash_latencies(reports: world.Reports, workers: int, expected_starts: collections.Counter[str]) -> list[int]:
    """Kills workers one after the other, each in good health; ns from kill -9 to the replacement's start.

    Counts in `expected_starts` how often each worker will have started.
    """
    latencies = []
    jitter = random.Random(workers)
    for _ in range(min(workers * CRASHES_PER_WORKER, CRASH_SAMPLES)):
        worker = min(reports.starts, key=lambda worker: reports.starts[worker][-1].at_ns)
        starts = reports.starts[worker]
        ripe_ns = starts[-1].at_ns + int((HEALTHY_S + 0.5) * SECOND)
        time.sleep(max(0, ripe_ns - world.now_ns()) / SECOND)
        time.sleep(jitter.uniform(0.001, 0.005))  # in step with nobody's loop
        seen = len(starts)
        expected_starts[worker] += 1
        killed_ns = world.now_ns()
        os.kill(starts[-1].pid, signal.SIGKILL)
        reports.read_until(lambda: len(starts) > seen, 30, f"replacement of {worker}")
        latencies.append(starts[-1].at_ns - killed_ns)
    return latencies


def count_workers(workspace: Workspace, expected_starts: collections.Counter[str]) -> tuple[int, int]:
    """(lost, doubled): slots without a living worker; starts nobody asked for and processes that never reported."""
    reports = workspace.reports
    reports.read_all()
    living = workspace.workers()
    pids = {worker: {start.pid for start in starts} for worker, starts in reports.starts.items()}
    lost = sum(1 for worker in expected_starts if not pids[worker] & living)
    unasked = sum(max(0, len(starts) - expected_starts[worker]) for worker, starts in reports.starts.items())
    return lost, unasked + len(living - set().union(*pids.values()))


# --- log capture -------------------------------------------------------------------------------------------------


def measure_log(
    workspace: Workspace, subject: Baseline | Leasehold, write_size: int, options: Options, results: Results
) -> None:
    """One worker writes as fast as it can; bytes per second until all of them are in the files."""
    arguments = ("flood", str(options.log_bytes), str(write_size))
    with subject.start_captured(Fleet(1, arguments)) as instance:
        instance.wait_for_workers(1)
        time.sleep(0.5)  # the start is not part of this row
        release_flood(workspace.reports, "bench/0")
        flood = wait_for_floods(workspace.reports, 1)["bench/0"]
        with contextlib.suppress(BenchError):  # what never arrives is counted as lost
            wait_for_bytes(instance, "bench", 0, flood.bytes)
        took_ns = world.now_ns() - flood.begin_ns
        results.add(f"log_{write_size}", 1, subject.name, flood.bytes * SECOND / took_ns)
        faulty = sum(verify_log(workspace, instance, "bench", 0, flood.bytes))
        results.must_be_zero("log_lines", 1, subject.name, faulty)
        instance.stop()


def release_flood(reports: world.Reports, worker: str) -> None:
    """Lets a worker that has reported its start begin to write."""
    os.kill(reports.pids()[worker], signal.SIGUSR1)


def wait_for_floods(reports: world.Reports, count: int) -> dict[str, world.Flood]:
    """Until so many workers have written everything."""
    reports.read_until(lambda: len(reports.floods) >= count, 300, f"{count} workers done writing")
    return reports.floods


def wait_for_bytes(instance: Instance, fleet: str, slot: int, count: int) -> None:
    """Until a worker's log files hold so many bytes."""

    def arrived() -> bool:
        with contextlib.suppress(FileNotFoundError):  # rotated between being listed and being looked at
            return sum(file.stat().st_size for file in instance.log_files(fleet, slot)) >= count
        return False

    world.wait_until(arrived, 10, f"{count} bytes of log of {fleet}/{slot}")


def verify_log(workspace: Workspace, instance: Instance, fleet: str, slot: int, count: int) -> tuple[int, int, int]:
    """Lines (lost, doubled, damaged) of the `count` bytes that a worker has written."""
    files = [str(file) for file in instance.log_files(fleet, slot)]
    command = [str(workspace.worker), "verify", str(count // LINE_BYTES), *files]
    lost, doubled, damaged = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(lost), int(doubled), int(damaged)


# --- grandchildren -----------------------------------------------------------------------------------------------


def measure_grandchildren(workspace: Workspace, subject: Baseline | Leasehold, results: Results) -> None:
    """Three workers with six children that do not go by themselves; how many are left after the stop."""
    workers = 3
    with subject.start(Fleet(workers, ("grandchildren",), grace_s=1)) as instance:
        instance.wait_for_workers(workers)
        if len(workspace.workers()) != 3 * workers:
            raise BenchError(f"{len(workspace.workers())} processes where {3 * workers} should be")
        instance.stop()
        left = len(workspace.processes())
        if isinstance(subject, Baseline):
            results.add("grandchildren", workers, subject.name, left)  # it never promised anything
        else:
            results.must_be_zero("grandchildren", workers, subject.name, left)


# --- kill -9 of the supervisor -----------------------------------------------------------------------------------


class HealthPolls:
    """Threads that ask for /livez without a pause to speak of, over TCP and over the unix socket.

    `refused` counts connects that failed in any way; `broken` requests on a connection that got no 200.
    """

    def __init__(self, port: int, control):
        self.over = threading.Event()
        self.asked = self.refused = self.broken = 0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._poll, args=(address,)) for address in (port, port, control)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _poll(self, address) -> None:
        while not self.over.wait(0.002):
            connection, connected, answered = world.Connection(address, timeout_s=10), False, False
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.connect()
                connected = True
                connection.request("GET", "/livez", headers={"Connection": "close"})
                answered = connection.getresponse().status == 200
            connection.close()
            with self.lock:
                self.asked += 1
                self.refused += not connected
                self.broken += connected and not answered


def measure_kill(workspace: Workspace, subject: Leasehold, workers: int, results: Results) -> None:
    """kill -9 of the supervisor, and of some workers with it, while others write logs and clients ask for health."""
    port = world.free_port()
    flood_bytes = int(FLOOD_RATE * (SUPERVISOR_KILLS + 1) * KILL_GAP_S) // LINE_BYTES * LINE_BYTES
    floods = Fleet(FLOODS, ("flood", str(flood_bytes), "4096", str(FLOOD_RATE)), name="flood")
    with subject.start(Fleet(workers, ("pause",)), floods, port=port) as instance:
        instance.wait_for_workers(workers + FLOODS)
        wait_for_status(instance, workers + FLOODS)
        expected_starts = collections.Counter(workspace.reports.starts.keys())
        for slot in range(FLOODS):
            release_flood(workspace.reports, f"flood/{slot}")
        with HealthPolls(port, instance.control) as polls:
            for turn in range(SUPERVISOR_KILLS):
                time.sleep(KILL_GAP_S)
                victims = [f"bench/{(3 * turn + i) % workers}" for i in range(min(3, workers))]
                expected_starts.update(victims)
                results.add("kill_back", workers, subject.name, kill_supervisor(instance, victims))
            wait_for_floods(workspace.reports, FLOODS)
        lost, doubled = count_workers(workspace, expected_starts)
        results.must_be_zero("kill_lost", workers, subject.name, lost)
        results.must_be_zero("kill_doubled", workers, subject.name, doubled)
        results.must_be_zero("kill_refused", workers, subject.name, polls.refused)
        results.add("kill_broken", workers, subject.name, polls.broken)
        results.add("kill_asked", workers, subject.name, polls.asked)
        results.must_be_zero("kill_lines", workers, subject.name, faulty_lines(workspace, instance, flood_bytes))
        instance.stop()
        results.must_be_zero("left", workers, subject.name, len(workspace.processes()))


def faulty_lines(workspace: Workspace, instance: Instance, flood_bytes: int) -> int:
    """Lines lost, doubled or damaged of all workers of the fleet `flood`."""
    faulty = 0
    for slot in range(FLOODS):
        with contextlib.suppress(BenchError):
            wait_for_bytes(instance, "flood", slot, flood_bytes)
        faulty += sum(verify_log(workspace, instance, "flood", slot, flood_bytes))
    return faulty


def kill_supervisor(instance: Instance, victims: list[str]) -> int:
    """ns from kill -9 until the status is right: a new supervisor, every worker running, the victims replaced."""
    reports = instance.workspace.reports
    old = instance.supervisor_pid()
    killed = {worker: reports.pids()[worker] for worker in victims}
    begin_ns = world.now_ns()
    for pid in (old, *killed.values()):
        os.kill(pid, signal.SIGKILL)
    while world.now_ns() - begin_ns < 20 * SECOND:
        status = world.get_json(instance.control, "/v1/status")
        answered_ns = world.now_ns()
        if status and status["supervisor"]["pid"] != old and is_right(status, instance.workspace, killed):
            return answered_ns - begin_ns
        time.sleep(0.001)
    raise BenchError("status is still wrong 20 s after the kill of the supervisor")


def is_right(status: dict, workspace: Workspace, killed: dict[str, int]) -> bool:
    """Is every worker shown as running, as a process that lives and has reported in its name, and no killed one?"""
    workspace.reports.read_all()
    starts = workspace.reports.starts
    workers = [worker for fleet in status["fleets"] for worker in fleet["workers"]]
    running = {worker["id"]: worker["pid"] for worker in workers if worker["state"] == "running"}
    return (
        running.keys() == starts.keys()
        and all(pid in {start.pid for start in starts[worker]} for worker, pid in running.items())
        and all(running[worker] != pid for worker, pid in killed.items())
        and set(running.values()) <= workspace.workers()
    )


def wait_for_status(instance: Instance, workers: int) -> None:
    """Until the status is right for the first time."""

    def right() -> bool:
        status = world.get_json(instance.control, "/v1/status")
        return status is not None and is_right(status, instance.workspace, {})

    world.wait_until(right, 30, f"status with {workers} running workers", pause_s=0.02)


# --- takeover of a lock ------------------------------------------------------------------------------------------


class Watcher:
    """A process that knows when a lock file was closed for the last time, without being asked at that instant."""

    def __init__(self, workspace: Workspace, lock):
        self.reports = workspace.reports
        self.reports.forget()
        command = [str(workspace.worker), "-i", "watch/0", "watch", str(lock)]
        self.pid = world.spawn(command, "/dev/null", workspace.environment())
        self.reports.read_until(lambda: "watch/0" in self.reports.starts, 10, "the watcher of the lock file")

    def closes(self) -> list[int]:
        """When it was closed, since this was last asked."""
        self.reports.closes, self.reports.told = [], False
        os.kill(self.pid, signal.SIGUSR1)
        self.reports.read_until(lambda: self.reports.told, 10, "closes of the lock file")
        return self.reports.closes

    def end(self) -> None:
        world.end({self.pid})


def measure_takeover(workspace: Workspace, subject: Baseline | Leasehold, how: str, results: Results) -> None:
    """A holder ends while another waits: ns from the last close of the lock file to the successor's own clock readings."""
    lock = workspace.new_lock()
    watcher = Watcher(workspace, lock)
    jitter = random.Random(how)
    with contextlib.ExitStack() as stack:
        holder = None
        for _ in range(TAKEOVER_SAMPLES):
            if holder is None:
                holder = start_holder(workspace, subject, how, lock)
                stack.enter_context(holder)
                holder.wait_for_workers(1)
            successor = stack.enter_context(start_successor(subject, lock))
            time.sleep(jitter.uniform(0.2, 0.3))  # it waits, and in step with nobody's loop
            wait_for_turn(subject, successor)
            watcher.closes()
            world.reap_orphans()  # as init would: whoever takes over looks at every process
            end_holder(holder, how)
            successor.wait_for_workers(1)
            start = workspace.reports.starts["bench/0"][-1]
            ends_ns = [at_ns for at_ns in watcher.closes() if at_ns < start.first_ns]
            if ends_ns:  # otherwise the successor was quicker than the watcher, on a machine that does something else
                results.add(f"takeover_{how}", 1, subject.name, start.first_ns - ends_ns[-1])
                results.add(f"takeover_{how}_report", 1, subject.name, start.at_ns - ends_ns[-1])
            holder = successor
            if how == "flock" and isinstance(subject, Leasehold):
                holder.kill(signal.SIGTERM)
                holder = None
        watcher.end()


def start_holder(workspace: Workspace, subject: Baseline | Leasehold, how: str, lock) -> Instance:
    """Whoever is to end first."""
    if how == "flock" or isinstance(subject, Baseline):
        return Baseline(workspace).start_locked(lock, "--no-fork")
    return start_successor(subject, lock)


def start_successor(subject: Baseline | Leasehold, lock) -> Instance:
    """Whoever waits; of flock(1) too the worker takes its place, so that one process is all there is to end."""
    if isinstance(subject, Baseline):
        return subject.start_locked(lock, "--no-fork")
    return subject.start(Fleet(1, ("pause",), lock=lock))


def wait_for_turn(subject: Baseline | Leasehold, successor: Instance) -> None:
    """Until it is known to wait."""
    if isinstance(subject, Leasehold):

        def waits() -> bool:
            status = world.get_json(successor.control, "/v1/status")
            return status is not None and status["fleets"][0]["state"] == "standby"

        world.wait_until(waits, 10, "the successor waits")


def end_holder(holder: Instance, how: str) -> None:
    """In order, or not."""
    holder.kill(signal.SIGKILL if how == "kill" else signal.SIGTERM)


# --- one command under a lock ------------------------------------------------------------------------------------


def measure_lock(workspace: Workspace, subject: Baseline | Leasehold, results: Results) -> None:
    """A command that does nothing, under a lock that is free: the whole process."""
    if isinstance(subject, Baseline):
        name, command, files = None, subject.lock_command(workspace.new_lock()), []
    else:
        name = f"bench-{os.getpid()}"
        command, files = subject.lock_command(name), subject.lock_files(name)
    try:
        for _ in range(LOCK_SAMPLES):
            results.add("lock", 1, subject.name, world.run_timed(command))
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    results.must_be_zero("left", 1, subject.name, len(workspace.processes()))
