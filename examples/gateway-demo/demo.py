#!/usr/bin/env python3
"""A fleet that follows the load, behind a real HAProxy, loaded with wrk, while its workers and its supervisor are killed.

    cargo build --release --bin leasehold --example gateway
    python3 examples/gateway-demo/demo.py --svg scaling.svg --markdown scaling-table.md

It needs haproxy and wrk. Everything lies in a temporary directory and on free ports of the loopback; what it started it ends, also on ^C. It exits 1
if a request failed that was not with the killed worker, or if the fleet did not grow or did not shrink.
"""

import argparse
import contextlib
import datetime
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True  # no __pycache__ beside the sources
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benches"))

import chart
import world
from chart import Mark, Sample

WAIT_MS = 9  # what a request waits for somebody behind the gateway, after a millisecond of work
WORKER_CORES = 0.125  # so much a worker can use: 1 ms of 10, and what a request costs besides
MIN, MAX, SURGE = 2, 10, 2
PORTS = MAX + MAX // 4 + SURGE  # a quarter of the workers may drain while others start
THINK_MS = 500  # what a user of wrk waits before the next request, on average
LOW, MIDDLE, HIGH = 30, 150, 250  # users at once
LOOK_S = 0.5
PROBERS = 4
AFTER_KILL_S = 3.0  # a failure names its worker; only so long after the kill is it the kill's

HAPROXY = """\
global
    maxconn 4000
    hard-stop-after 60s
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    timeout queue 10s
    # A worker that cannot be reached: the next try goes to another one. One that was reached and died without a byte of an answer
    # may have done the work: that is tried again for GET alone, below.
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response
    http-reuse safe
    # A reload answers the next request of each connection with `Connection: close`, instead of closing where a request is on its way.
    option idle-close-on-response
frontend in
    bind 127.0.0.1:{port}
    http-request disable-l7-retry unless METH_GET
    http-after-response set-header X-Worker %[srv_name]
    default_backend web
"""

LEASEHOLD = """\
schema = 1
[node]
name = "demo"

[http]
listen = ["127.0.0.1:{http}"]

[fleet.web]
command = ["{gateway}"]
env = {{ GATEWAY_WORK = "{work}", GATEWAY_WAIT_MS = "{wait_ms}" }}
port_range = "{low}-{high}"
ready = "notify"
restart = {{ policy = "always", backoff = "200ms..5s" }}
drain = {{ deregister_delay = "3s", timeout = "15s" }}
rollout = {{ max_surge = {surge}, max_unavailable = 0, min_ready = "1s" }}

[fleet.web.scale]
min = {min}
max = {max}
high = "80%"
target = "60%"
signals = ["cpu", "busy"]
worker_cores = "{cores}"
warmup = "3s"
down_window = "20s"

[fleet.web.publish]
mode = "worker"
[[fleet.web.publish.file]]
template = "{template}"
path = "{backend}"
check = ["{haproxy}", "-c", "-q", "-f", "{base}", "-f", "{backend}"]
reload = ["/bin/sh", "-c", "kill -USR2 {master}"]
"""

# Users who think between two requests; what is answered wrongly is written down with the worker that it was sent to.
WRK = """\
local errors
function init(args)
  math.randomseed(tonumber(args[1]))
  errors = io.open(args[2], "a")
  think = tonumber(args[3])
end
function delay() return math.random(0, 2 * think) end
function response(status, headers, body)
  if status ~= 200 then
    errors:write(os.time(), " ", status, " ", headers["X-Worker"] or headers["x-worker"] or "-", "\\n")
    errors:flush()
  end
end
"""


class DemoError(Exception):
    """It could not be shown; the message says why."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--leasehold", type=Path, default=target / "release/leasehold")
    parser.add_argument("--gateway", type=Path, default=target / "release/examples/gateway")
    parser.add_argument("--svg", type=Path, help="where the chart goes")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    parser.add_argument("--samples", type=Path, help="where what was seen goes, as JSON: chart.py draws it again")
    parser.add_argument("--phase", type=float, default=25, help="seconds of each load before anything is killed")
    parser.add_argument("--patience", type=float, default=120, help="seconds more, where others keep the processors from the fleet")
    return parser.parse_args()


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise DemoError(f"{name} is not installed")
    return found


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on, below those that the kernel gives away."""
    for _ in range(200):
        low = random.randrange(18_000, 30_000)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(low, low + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return low
    raise DemoError("no free ports")


def machine_times() -> tuple[int, int]:
    """All of the processors' time and what of it was idle, in ticks."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]


class Failures:
    """Requests that failed: when, how, and with which worker, if that is known."""

    def __init__(self):
        self.lock = threading.Lock()
        self.all: list[tuple[float, str, str]] = []

    def add(self, at: float, how: str, worker: str) -> None:
        with self.lock:
            self.all.append((at, how, worker))


class Prober(threading.Thread):
    """A client of its own: one request after the other, some on kept connections and some on new ones."""

    def __init__(self, port: int, failures: Failures, stop: threading.Event):
        super().__init__(daemon=True)
        self.port, self.failures, self.stop = port, failures, stop
        self.took: list[tuple[float, float]] = []
        self.requests = 0

    def run(self) -> None:
        connection = None
        while not self.stop.wait(random.uniform(0.05, 0.15)):
            begin = time.monotonic()
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failures.add(begin, str(answer.status), answer.getheader("X-Worker") or "-")
                fresh = answer.will_close or random.random() < 0.2
            except (OSError, http.client.HTTPException) as error:
                self.failures.add(begin, type(error).__name__, "-")
                fresh = True
            self.requests += 1
            self.took.append((begin, time.monotonic() - begin))
            if fresh and connection is not None:
                connection.close()
                connection = None


class Demo:
    """The processes, and what was seen of them."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.directory = Path(tempfile.mkdtemp(prefix="leasehold-demo-")).resolve()
        self.began = time.monotonic()
        self.samples: list[Sample] = []
        self.marks: list[Mark] = []
        self.rows: list[tuple[int, list[Sample]]] = []
        self.failures = Failures()
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.wrks: dict[int, tuple[int, Path, Path]] = {}
        self.requests = 0
        self.keeper = self.haproxy = None
        self.killed: tuple[float, str] | None = None
        self.log = self.directory / "log"

    def now(self) -> float:
        return time.monotonic() - self.began

    def mark(self, caption: str) -> None:
        self.marks.append(Mark(self.now(), caption))
        print(f"{self.now():6.1f} s  {caption}", flush=True)

    # --- what is started ---

    def start(self) -> None:
        self.leasehold = shutil.copy2(self.options.leasehold, self.directory / "leasehold")
        gateway = shutil.copy2(self.options.gateway, self.directory / "gateway")
        haproxy, self.wrk = program("haproxy"), program("wrk")
        self.port, self.http = world.free_port(), world.free_port()
        low = free_ports(PORTS)
        base, backend = self.directory / "haproxy.cfg", self.directory / "web.cfg"
        base.write_text(HAPROXY.format(port=self.port))
        backend.write_text("backend web\n")
        (self.directory / "think.lua").write_text(WRK)
        work = int(subprocess.run([gateway, "--calibrate"], check=True, capture_output=True).stdout)
        self.haproxy = world.spawn([haproxy, "-W", "-f", str(base), "-f", str(backend)], self.log)
        # Before it listens a SIGUSR2 would end it.
        world.wait_until(self.answers, 15, "HAProxy answers", 0.05)
        config = self.directory / "leasehold.toml"
        config.write_text(
            LEASEHOLD.format(
                http=self.http, gateway=gateway, work=work, wait_ms=WAIT_MS, low=low, high=low + PORTS - 1,
                surge=SURGE, min=MIN, max=MAX, cores=WORKER_CORES, haproxy=haproxy, base=base, backend=backend,
                template=ROOT / "examples/publish/haproxy-backend.j2", master=self.haproxy,
            )
        )  # fmt: skip
        places = [f"--{kind}-dir={self.directory / name}" for kind, name in (("run", "run"), ("state", "state"), ("log", "logs"))]
        self.keeper = world.spawn([str(self.leasehold), "run", "-c", str(config), *places], self.log)
        self.socket = self.directory / "run/control.sock"
        world.wait_until(lambda: (self.fleet() or {}).get("ready", 0) >= MIN, 30, "the fleet is ready", 0.05)
        world.wait_until(self.serves, 15, "HAProxy knows the workers", 0.1)

    def answers(self) -> bool:
        """Does it say anything at all? Without a worker that is 503."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return world.get(self.port, "/")[0] > 0
        return False

    def serves(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return world.get(self.port, "/")[0] == 200
        return False

    def status(self) -> dict | None:
        return world.get_json(self.http, "/v1/status")

    def fleet(self) -> dict | None:
        status = self.status()
        return status["fleets"][0] if status and status["fleets"] else None

    def load(self, users: int) -> None:
        """So many users more."""
        name = f"wrk-{len(self.wrks)}"
        output, errors = self.directory / name, self.directory / f"{name}.errors"
        command = [self.wrk, "-t1", f"-c{users}", "-d3600s", "--timeout=20s", "-s", str(self.directory / "think.lua"),
                   f"http://127.0.0.1:{self.port}/", "--", str(users), str(errors), str(THINK_MS)]  # fmt: skip
        self.wrks[world.spawn(command, output)] = (users, output, errors)

    def unload(self, pid: int) -> None:
        """These users go, and what they saw is counted."""
        users, output, errors = self.wrks.pop(pid)
        os.kill(pid, signal.SIGINT)
        if world.wait_for_exit(pid, 10) is None:
            world.end({pid})
            raise DemoError("wrk does not end")
        text = output.read_text()
        count = re.search(r"(\d+) requests in", text)
        if count is None:
            raise DemoError(f"wrk says nothing: {text}")
        self.requests += int(count[1])
        for line in errors.read_text().splitlines() if errors.exists() else []:
            at, status, worker = line.split()
            self.failures.add(time.monotonic() - (time.time() - int(at)), status, worker)
        broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        for how, n in zip(("connect", "read", "write", "timeout"), broken.groups() if broken else ()):
            for _ in range(int(n)):
                self.failures.add(time.monotonic(), f"wrk: {how}", "-")

    # --- what is seen ---

    def watch(self) -> None:
        self.probers = [Prober(self.port, self.failures, self.stop) for _ in range(PROBERS)]
        self.threads = [*self.probers, threading.Thread(target=self.sample, daemon=True)]
        for thread in self.threads:
            thread.start()

    def sample(self) -> None:
        """Twice a second. What cannot be read is a gap."""
        times, cpu, seen_at = machine_times(), {}, time.monotonic()
        due = time.monotonic()
        while not self.stop.wait(max(0.0, due - time.monotonic())):
            due += LOOK_S
            sample = Sample(self.now())
            if fleet := self.fleet():
                sample.ready, sample.desired = fleet["ready"], fleet["desired"]
                sample.utilization = fleet["scale"]["utilization"]
            after = machine_times()
            if after[0] > times[0]:
                sample.machine = 1 - (after[1] - times[1]) / (after[0] - times[0])
            times = after
            if used := self.cpu_seconds():
                now = time.monotonic()
                spent = sum(max(0.0, n - cpu[one]) for one, n in used.items() if one in cpu)
                sample.cores = spent / (now - seen_at) if cpu else None
                cpu, seen_at = used, now
            begin = time.monotonic() - 4 * LOOK_S
            took = sorted(s for prober in self.probers for at, s in prober.took[-200:] if at >= begin)
            if took:
                sample.p50, sample.p99 = took[len(took) // 2], took[min(len(took) - 1, len(took) * 99 // 100)]
            self.samples.append(sample)

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of each worker, as /metrics says it."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            code, body = world.get(self.http, "/metrics")
            found = re.findall(r'^leasehold_worker_cpu_seconds_total\{([^}]*)\} (\S+)', body.decode(), re.MULTILINE)
            return {labels: float(n) for labels, n in found} if code == 200 else {}
        return {}

    def settle(self, seconds: float) -> None:
        """So long, and longer where the machine has nothing to give: until the fleet has carried its load for a while."""
        time.sleep(seconds)

        def carries() -> bool:
            last = self.samples[-16:]
            return all(s.utilization is not None and s.utilization < 0.8 and s.ready == s.desired for s in last)

        with contextlib.suppress(world.BenchError):
            world.wait_until(carries, self.options.patience, "the fleet carries its load", LOOK_S)

    def window(self, users: int, seconds: float) -> None:
        """The last seconds of a load are what the table says of it."""
        since = self.now() - seconds
        self.rows.append((users, [sample for sample in self.samples if sample.at >= since]))

    # --- what is done ---

    def play(self) -> None:
        phase = self.options.phase
        self.load(LOW)
        self.watch()
        self.mark(f"{LOW} users")
        time.sleep(phase * 0.6)
        self.window(LOW, 8)
        self.load(MIDDLE - LOW)
        self.mark(f"{MIDDLE} users")
        self.settle(phase)
        self.window(MIDDLE, 8)
        self.load(HIGH - MIDDLE)
        self.mark(f"{HIGH} users")
        self.settle(phase)
        self.window(HIGH, 8)
        self.mark("rolling restart")
        command = [str(self.leasehold), "restart", "web", "--socket", str(self.socket), "--timeout", "90s"]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
            raise DemoError("the rolling restart did not end well")
        self.mark("all replaced")
        time.sleep(4)
        self.kill_worker()
        time.sleep(8)
        self.kill_supervisor()
        time.sleep(8)
        for pid in [pid for pid, (users, _, _) in self.wrks.items() if users != LOW]:
            self.unload(pid)
        self.mark(f"{LOW} users")
        with contextlib.suppress(world.BenchError):
            world.wait_until(lambda: (self.fleet() or {}).get("ready") == MIN, 200, "small again", LOOK_S)
        time.sleep(5)
        for pid in list(self.wrks):
            self.unload(pid)
        self.stop.set()
        for thread in self.threads:
            thread.join(25)
        self.requests += sum(prober.requests for prober in self.probers)

    def kill_worker(self) -> None:
        fleet = self.fleet()
        if fleet is None:
            raise DemoError("no status")
        worker = next(w for w in fleet["workers"] if w["pid"] and w["state"] == "running")
        if world.processes_of(self.directory).get(worker["pid"]) is None:
            raise DemoError("a worker that is not ours")
        self.killed = (time.monotonic(), f"demo-{worker['slot']}")
        self.mark("kill -9 a worker")
        os.kill(worker["pid"], signal.SIGKILL)

    def kill_supervisor(self) -> None:
        before = self.status()
        pid = before["supervisor"]["pid"]
        if world.processes_of(self.directory).get(pid) is None:
            raise DemoError("a supervisor that is not ours")
        self.mark("kill -9 the supervisor")
        os.kill(pid, signal.SIGKILL)
        told = lambda: (self.status() or before)["supervisor"]["pid"] != pid
        world.wait_until(told, 10, "a new supervisor", 0.005)

    def end(self) -> None:
        """Whatever happened, nothing of it stays."""
        self.stop.set()
        world.end(set(self.wrks))
        if self.keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.keeper, signal.SIGTERM)
                world.wait_for_exit(self.keeper, 30)
        if self.haproxy is not None:
            processes = {self.haproxy, *world.children_of(self.haproxy)}
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.haproxy, signal.SIGTERM)
                world.wait_for_exit(self.haproxy, 5)
            # Who served before the last reload is a child of the master too, and by now one of ours.
            world.end(processes & set(world.children_of(os.getpid())))
        world.end(set(world.processes_of(self.directory)))
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- what came of it ---

    def judge(self) -> int:
        mine = [f for f in self.failures.all if self.was_killed(f)]
        others = [f for f in self.failures.all if not self.was_killed(f)]
        for at, how, worker in others[:20]:
            print(f"failed: {at - self.began:.1f} s  {how}  worker {worker}")
        print(f"{self.requests} requests; failed requests: {len(self.failures.all)}, of which {len(mine)} were with the killed worker")
        # What it wanted: during a rolling restart there are more.
        sizes = [s.desired for s in self.samples if s.desired is not None]
        biggest = max(sizes)
        print(f"workers: {sizes[0]}, at most {biggest}, at the end {sizes[-1]}")
        grew, shrank = biggest > sizes[0], sizes[-1] < biggest
        if not grew or not shrank:
            print("the fleet did not " + ("shrink" if grew else "grow"))
        return 0 if grew and shrank and not others else 1

    def was_killed(self, failure: tuple[float, str, str]) -> bool:
        at, _, worker = failure
        # wrk writes whole seconds down.
        return self.killed is not None and worker == self.killed[1] and -1.5 <= at - self.killed[0] <= AFTER_KILL_S

    def write(self) -> None:
        per_sample = {}
        for at, _, _ in self.failures.all:
            key = int((at - self.began) / LOOK_S)
            per_sample[key] = per_sample.get(key, 0) + 1
        for sample in self.samples:
            sample.failed = per_sample.get(int(sample.at / LOOK_S), 0)
        if self.options.svg:
            self.options.svg.write_text(chart.svg(self.samples, self.marks, MAX + SURGE))
        if self.options.samples:
            seen = {"samples": list(map(vars, self.samples)), "marks": list(map(vars, self.marks)), "workers_max": MAX + SURGE}
            self.options.samples.write_text(json.dumps(seen))
        table = chart.table(self.rows)
        print(table)
        if self.options.markdown:
            date = datetime.date.today().isoformat()
            self.options.markdown.write_text(f"{table}\n{os.cpu_count()} cores, {date}\n")


def main() -> int:
    options = arguments()

    def leave(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    world.become_subreaper()
    demo = Demo(options)
    try:
        demo.start()
        demo.began = time.monotonic()
        demo.play()
        demo.write()
        return demo.judge()
    except KeyboardInterrupt:
        return 130
    except (DemoError, world.BenchError) as error:
        print(f"demo: {error}", file=sys.stderr)
        if demo.log.exists():
            print(demo.log.read_text()[-3000:], file=sys.stderr)
        return 1
    finally:
        demo.end()


if __name__ == "__main__":
    sys.exit(main())
