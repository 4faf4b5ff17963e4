#!/usr/bin/env python3
"""Three members of etcd, three nodes of leasehold, and a flash sale that runs on one of them, while they are moved, killed and frozen.

    cargo build --release --bin leasehold
    python3 examples/cluster-demo/demo.py

It needs etcd (3.4 or newer), and takes a minute or so. Everything lies in a temporary directory and on free ports of the loopback; what it
started it ends, also on ^C. It exits 1 if two ran at once, if a fence fell, or if the books do not add up: a unit sold twice, a payment made twice
or not at all.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

sys.dont_write_bytecode = True  # no __pycache__ beside the sources
ROOT = Path(__file__).resolve().parent.parent.parent
FENCING = ROOT / "examples/fencing"
sys.path.insert(0, str(ROOT / "benches"))

import cluster
import world
from cluster import ClusterError
from judge import MS, Judge, Run

STOCK = 6000
RUSH = 1000  # so many units are left for the last act
BUYERS_S = 0.025  # an order, on average, so often
CARD_MS = 1500  # how long the bank of one buyer takes
ETCD_BYTES = 1 << 30  # what three members set aside for their logs

LEASEHOLD = """\
schema = 1
[node]
name = "{name}"

[etcd]
endpoints = {endpoints}
cluster = "demo"
lease_ttl = "5s"

[defaults]
cwd = "{directory}"
ready = "notify"
stop = {{ timeout = "3s" }}

# A flock of each node's own: else the three, being on one machine, would exclude each other without etcd.
[fleet.sale]
command = ["{python}", "{fencing}/sale.py", "shop.db", "--record", "sale.record"{options}]
singleton = {{ scope = "cluster", flock = "{directory}/{name}/sale.lock", grace = "500ms", kill_margin = "500ms", containment = "{containment}" }}

[fleet.payments]
command = ["{python}", "{fencing}/payments.py", "queue.db", "bank.db", "--record", "payments.record"]
singleton = {{ scope = "cluster", flock = "{directory}/{name}/payments.lock", grace = "500ms", kill_margin = "500ms", containment = "{containment}" }}
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--leasehold", type=Path, default=target / "release/leasehold")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}: half a minute")
    parser.add_argument("--acts", metavar="ACT,ACT", help=f"these, of {', '.join(ACTS)}")
    parser.add_argument("--without-fence", action="store_true", help="the store takes every write: see what a frozen node sells")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave stores, records and logs there")
    options = parser.parse_args()
    options.play = options.acts.split(",") if options.acts else list(QUICK if options.quick else ACTS)
    for act in options.play:
        if act not in ACTS:
            parser.error(f"there is no act {act!r}: {', '.join(ACTS)}")
    if options.keep and options.keep.exists() and (not options.keep.is_dir() or any(options.keep.iterdir())):
        parser.error(f"{options.keep} is there already")
    return options


# --- what is said ---


class Stage:
    """Plain sentences, no wider than the terminal; colours for people only."""

    def __init__(self):
        self.width = max(40, min(80, shutil.get_terminal_size().columns))
        self.colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.began = time.monotonic()

    def paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colours else text

    def title(self, text: str) -> None:
        print()
        for line in textwrap.wrap(text, self.width):
            print(self.paint(line, "1"), flush=True)

    def say(self, text: str) -> None:
        stamp = f"{time.monotonic() - self.began:6.1f} s  "
        wrapped = textwrap.wrap(text, self.width - len(stamp), break_long_words=False)
        print(stamp + f"\n{' ' * len(stamp)}".join(wrapped), flush=True)

    def verdict(self, good: bool, text: str) -> None:
        word = self.paint("ok  ", "32") if good else self.paint("BAD ", "1;31")
        print(word + "\n    ".join(textwrap.wrap(text, self.width - 4)), flush=True)

    def table(self, rows: list["Row"]) -> None:
        narrow = [9, 8]
        rest = self.width - sum(narrow) - 6
        fault = rest * 2 // 5
        widths = [fault, *narrow, rest - fault]
        rule = "  ".join("-" * width for width in widths)
        for n, row in enumerate([Row("fault", "gap", "overlap", "what was seen"), *rows]):
            cells = [textwrap.wrap(cell, width) for cell, width in zip((row.fault, row.gap, row.overlap, row.seen), widths)]
            for line in range(max(map(len, cells))):
                texts = [(cell[line] if line < len(cell) else "").ljust(width) for cell, width in zip(cells, widths)]
                print("  ".join(texts).rstrip())
            if n == 0:
                print(rule)


@dataclass
class Row:
    fault: str
    gap: str
    overlap: str
    seen: str


def span(ns: int) -> str:
    return f"{ns / MS:.0f} ms" if ns < 10_000 * MS else f"{ns / MS / 1000:.1f} s"


# --- what is played ---


class Buyers(threading.Thread):
    """Order all the time, and ask for payments, each of them twice, as whoever got no answer does."""

    def __init__(self, demo: "Demo"):
        super().__init__(daemon=True)
        self.demo, self.stop = demo, threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.buy()
        except sqlite3.Error as error:
            self.error = error

    def buy(self) -> None:
        shop, queue = (self.demo.connect(name) for name in ("shop.db", "queue.db"))
        n = 0
        while not self.stop.wait(BUYERS_S):
            n += 1
            if shop.execute("SELECT units FROM stock").fetchone()[0] > RUSH:
                shop.execute("INSERT INTO orders (units) VALUES (?)", (n % 3 + 1,))
            payment = (f"invoice-{n // 2}", f"payee-{n // 2 % 7}", 100 + n // 2 % 900)
            queue.execute("INSERT INTO payments (key, payee, cents) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING", payment)


class Demo:
    def __init__(self, options: argparse.Namespace):
        self.options, self.stage = options, Stage()
        self.directory = Path(tempfile.mkdtemp(prefix="leasehold-demo-", dir=place())).resolve()
        self.nodes: list[cluster.Node] = []
        self.rows: list[Row] = []
        self.known: list[str] = []
        self.woken: set[str] = set()
        self.buyers = Buyers(self)

    def connect(self, name: str) -> sqlite3.Connection:
        return sqlite3.connect(self.directory / name, timeout=10, isolation_level=None)

    def script(self, name: str, *words: str) -> str:
        command = [sys.executable, str(FENCING / name), *words]
        said = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
        if said.stderr:
            raise ClusterError(said.stderr)
        return said.stdout

    # --- who is who ---

    def node(self, name: str) -> cluster.Node:
        return next(node for node in self.nodes if node.name == name)

    def holder(self) -> Run:
        """Whoever says a word from now on."""
        now = world.now_ns()

        def speaks() -> bool:
            run = self.sale.holder()
            return run is not None and run.last > now

        world.wait_until(speaks, 30, "somebody sells", 0.005)
        return self.sale.holder()

    def after(self, run: Run, timeout_s: float = 30) -> Run:
        """Whoever began after this one."""
        world.wait_until(lambda: self.sale.holder().first > run.first, timeout_s, f"another than {run.node} sells", 0.005)
        return self.holder()

    def units(self) -> tuple[int, int]:
        """Sold, and left."""
        db = self.connect("shop.db")
        with contextlib.closing(db):
            return db.execute("SELECT (SELECT coalesce(sum(units), 0) FROM sales), units FROM stock").fetchone()

    def sells(self) -> None:
        """Something is sold from now on."""
        before = self.units()[0]
        world.wait_until(lambda: self.units()[0] > before, 20, "something is sold", 0.01)

    def stand_by(self, but: str) -> None:
        for node in self.nodes:
            if node.name != but:
                world.wait_until(lambda node=node: node.stands_by("sale"), 20, f"{node.name} stands by", 0.02)

    # --- beginning and end ---

    def start(self) -> None:
        if not self.options.leasehold.exists():
            raise ClusterError(f"there is no {self.options.leasehold}: cargo build --release --bin leasehold")
        etcd = cluster.program("etcd", "etcd-server")
        self.stage.title("Three members of etcd, three nodes of leasehold, one worker that sells")
        self.members = cluster.Members(self.directory, etcd)
        self.script("sale.py", "shop.db", "--open", str(STOCK))
        self.script("payments.py", "queue.db", "bank.db", "--open")
        self.sale, self.payments = (Judge(self.directory / f"{name}.record") for name in ("sale", "payments"))
        leader = self.members.leader()
        self.stage.say(f"etcd is up on 127.0.0.1, and {leader.name} leads.")
        endpoints = json.dumps([member.endpoint for member in self.members.all])
        for name in ("n1", "n2", "n3"):
            text = LEASEHOLD.format(
                name=name, endpoints=endpoints, directory=self.directory, python=sys.executable, fencing=FENCING,
                containment="strict" if os.geteuid() == 0 else "weak",
                options=', "--without-fence"' if self.options.without_fence else "",
            )  # fmt: skip
            self.nodes.append(cluster.Node(name, self.directory / name, str(self.options.leasehold), text))
            self.nodes[-1].start()
        run = self.holder()
        self.stand_by(run.node)
        self.stage.say(
            f"{run.node} sells, with fence {run.fence[1]}; the others stand by. {STOCK:,} units are in stock. "
            "Leases are 5 s: a node that dies is followed 5 to 7 s later."
        )
        self.buyers.start()
        self.sells()

    def act(self, number: int, name: str) -> None:
        title, play = ACTS[name]
        self.stage.title(f"{number}. {title}")
        since = world.now_ns()
        seen = play(self)
        self.sells()
        # What it comes to is seen a little after.
        time.sleep(0.3)
        self.row(title, since, seen)

    def row(self, title: str, since: int, seen: str) -> None:
        gap = self.sale.gap_ns(since, world.now_ns())
        faults = [fault for fault in self.faults() if fault not in self.known]
        self.known += faults
        awake = [run for run in self.sale.look() if run.name in self.woken and run.last > since]
        overlap = "TWO" if faults else "none*" if awake else "none"
        self.rows.append(Row(title, span(gap), overlap, seen))
        sold, left = self.units()
        run = self.holder()
        self.stage.say(
            f"Gap {span(gap)}, overlap {overlap}. {run.node} holds, fence {run.fence[1]}. "
            f"{sold:,} units sold, {left:,} left, {STOCK:,} opened with."
        )

    def faults(self) -> list[str]:
        return self.sale.faults(self.woken) + self.payments.faults(self.woken)

    def rush(self) -> None:
        """More want to buy than there is."""
        self.stage.title("The rush: everything is sold, and not a unit more")
        self.buyers.stop.set()
        self.buyers.join(10)
        if self.buyers.error is not None:
            raise ClusterError(f"buyers: {self.buyers.error}")
        _, left = self.units()
        self.script("sale.py", "shop.db", "--buy", str(left))
        sold_out = lambda: self.report()["waiting"] == 0 and self.paid()["waiting"] == 0
        world.wait_until(sold_out, 60, "all orders are decided", 0.1)
        self.stage.say(f"{left:,} orders of one to three units each, for the last {left:,} units: all are decided.")

    def report(self) -> dict:
        return json.loads(self.script("sale.py", "shop.db", "--report"))

    def paid(self) -> dict:
        return json.loads(self.script("payments.py", "queue.db", "bank.db", "--report"))

    def judge(self) -> int:
        print()
        self.stage.table(self.rows)
        if self.woken:
            wrote = "each of them wrote." if self.options.without_fence else "one of them could write."
            print("\n* " + "\n  ".join(textwrap.wrap(FOOTNOTE + wrote, self.stage.width - 2)))
        print()
        faults, sale, paid = self.faults(), self.report(), self.paid()
        runs = self.sale.look()
        fences = " ".join(str(fence) for fence in dict.fromkeys(run.fence[1] for run in runs))
        self.stage.verdict(not faults, f"{len(runs)} workers sold one after the other; two at once: {len(faults)}; fences: {fences}")
        for fault in faults:
            print(f"    {fault}")
        self.stage.verdict(
            sale["adds_up"] and sale["left"] == 0,
            f"{sale['opened']:,} units, {sale['units_sold']:,} sold to {sale['buyers']:,} buyers in {sale['sales']:,} sales, "
            f"{sale['left']} left; {sale['sold_out']:,} buyers came too late",
        )
        self.stage.verdict(
            paid["adds_up"],
            f"{paid['asked']:,} payments, each asked for twice: {paid['made']:,} made, "
            f"{paid['cents_paid'] / 100:,.2f} paid of {paid['cents_asked'] / 100:,.2f}",
        )
        return 0 if not faults and sale["adds_up"] and sale["left"] == 0 and paid["adds_up"] else 1

    def end(self) -> None:
        """Whatever happened, nothing of it stays; a second ^C does not keep us from it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self.buyers.stop.set()
        cluster.end(self.nodes, os.getpid())
        if self.options.keep:
            shutil.copytree(self.directory, self.options.keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("m?", "run"))
        shutil.rmtree(self.directory, ignore_errors=True)


FOOTNOTE = (
    "The frozen worker was woken beside the next one on purpose, with nobody awake who could have killed it: "
    "the one case that only the fence covers. Both were there; "
)


def place() -> str | None:
    """Memory, where there is room and nobody said otherwise: etcd waits for the disk at each write."""
    if "TMPDIR" in os.environ:
        return None
    with contextlib.suppress(OSError):
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2 * ETCD_BYTES:
            return "/dev/shm"
    return None


def move(demo: Demo) -> str:
    run = demo.holder()
    to = next(node.name for node in reversed(demo.nodes) if node.name != run.node)
    other = next(node for node in demo.nodes if node.name not in (run.node, to))
    demo.stage.say(f"{run.node} sells. `leasehold singletons move sale --to {to}`, said on {other.name}.")
    other.say("singletons", "move", "sale", "--to", to)
    after = demo.after(run)
    if after.node != to:
        raise ClusterError(f"it went to {after.node}")
    return f"from {run.node} to {to}, {span(after.first - run.last)} from the last word here to the first there"


def stop_node(demo: Demo) -> str:
    run = demo.holder()
    node = demo.node(run.node)
    demo.stage.say(f"{run.node} sells, and is shut down: SIGTERM to its keeper, pid {node.keeper}.")
    node.stop()
    after = demo.after(run)
    demo.stage.say(f"{after.node} sells, with fence {after.fence[1]}. {run.node} is started again and stands by.")
    node.start()
    demo.stand_by(after.node)
    return f"handed over to {after.node}, {span(after.first - run.last)} from the last word here to the first there"


def kill_worker(demo: Demo) -> str:
    run = demo.holder()
    pid = demo.node(run.node).worker("sale")
    demo.stage.say(f"The worker is pid {pid} on {run.node}, with fence {run.fence[1]}.")
    os.kill(pid, signal.SIGKILL)
    after = demo.after(run)
    if (after.node, after.fence) != (run.node, run.fence):
        raise ClusterError(f"it went to {after.node} with fence {after.fence[1]}")
    return "started again on the same node, under the same fence"


def kill_supervisor(demo: Demo) -> str:
    run = demo.holder()
    node = demo.node(run.node)
    before = node.supervisor()
    demo.stage.say(f"{run.node} sells; its supervisor, who decides everything there, is pid {before}.")
    os.kill(before, signal.SIGKILL)
    began = world.now_ns()
    back = world.wait_until(lambda: (node.status() or {}).get("supervisor", {}).get("pid", before) != before, 10, "a new supervisor", 0.002)
    # Longer than a lease: whoever forgot to renew would have lost it.
    time.sleep(5.5)
    if demo.holder().name != run.name:
        raise ClusterError("the worker did not outlive its supervisor")
    return f"the same worker all along; the next supervisor answered after {span(back - began)} and renewed the lease"


def kill_node(demo: Demo) -> str:
    run = demo.holder()
    node = demo.node(run.node)
    demo.stage.say(f"{run.node} sells; its keeper, the parent of all, is pid {node.keeper}. Nobody there is left to say goodbye.")
    node.kill()
    killed = world.now_ns()
    after = demo.after(run)
    demo.stage.say(f"{after.node} sells, with fence {after.fence[1]}. {run.node} is started again and stands by.")
    node.start()
    demo.stand_by(after.node)
    return f"{after.node} took over {span(after.first - killed)} later, when the lease was over: fence {run.fence[1]}, then {after.fence[1]}"


def freeze_node(demo: Demo) -> str:
    run = demo.holder()
    node = demo.node(run.node)
    frozen = [node.keeper, node.supervisor(), node.worker("sale")]
    buyer = asks_bank(demo, run)
    cluster.send(frozen, signal.SIGSTOP)
    at = world.now_ns()
    demo.stage.say(
        f"{run.node} sells. Its worker has looked at its page, may write, and asks the bank of buyer {buyer}: just there keeper, supervisor and "
        "worker are stopped, as a hypervisor stops a machine."
    )
    after = demo.after(run)
    demo.stage.say(f"{after.node} took over after {span(after.first - at)}, with fence {after.fence[1]}, asks that bank too, and sells.")
    world.wait_until(lambda: sold_by(demo, after) > 0, 20, f"{after.node} sells", 0.01)
    # Here nobody is awake who could kill it, and it does not look again before it writes.
    demo.woken.add(run.name)
    woken = world.now_ns()
    cluster.send(frozen[2:], signal.SIGCONT)
    if demo.options.without_fence:
        time.sleep(0.5)
        cluster.send(frozen, signal.SIGCONT)
        demo.stand_by(after.node)
        return f"woken after {span(woken - at)}, it wrote what it had counted before: no store refused it"
    old = lambda: next(one for one in demo.sale.look() if one.name == run.name)
    world.wait_until(lambda: old().refused is not None, 10, "the old one is refused", 0.01)
    refused_at, word = old().refused
    demo.stage.say(f"The worker of {run.node} alone is woken, and writes: {word}.")
    if not word.startswith("fenced") or not word.endswith("page: no"):
        raise ClusterError(f"it was not the store that refused: {word}")
    cluster.send(frozen, signal.SIGCONT)
    demo.stand_by(after.node)
    return (
        f"{after.node} took over after {span(after.first - at)}; the old worker, woken after {span(woken - at)}, tried to sell to buyer {buyer} "
        f"again: refused by the store {span(refused_at - woken)} later, and its page said no"
    )


def asks_bank(demo: Demo, run: Run) -> int:
    """A buyer with a slow bank; returns when the worker has looked at its page and asks."""
    demo.script("sale.py", "shop.db", "--buy", "1", "--card-ms", str(CARD_MS))
    with contextlib.closing(demo.connect("shop.db")) as db:
        (buyer,) = db.execute("SELECT max(id) FROM orders WHERE card_ms > 0").fetchone()
    log = demo.node(run.node).directory / "log/sale/0.log"
    world.wait_until(lambda: f"order {buyer}: " in log.read_text(), 10, "the bank is asked", 0.002)
    return buyer


def sold_by(demo: Demo, run: Run) -> int:
    with contextlib.closing(demo.connect("shop.db")) as db:
        return db.execute("SELECT count(*) FROM sales WHERE fence = ?", run.fence[1:]).fetchone()[0]


def kill_leader(demo: Demo) -> str:
    run = demo.holder()
    leader = demo.members.leader()
    demo.stage.say(f"{leader.name} leads etcd; {run.node} sells.")
    leader.kill()
    killed = time.monotonic()
    next_leader = demo.members.leader()
    demo.stage.say(f"{next_leader.name} leads {time.monotonic() - killed:.1f} s later.")
    # Longer than a lease: it was renewed by the new leader.
    time.sleep(max(0.0, 5.5 - (time.monotonic() - killed)))
    demo.stage.say(f"A lease later {run.node} sells still. {leader.name} is started again.")
    demo.members.start([leader])
    if demo.holder().name != run.name:
        raise ClusterError("the worker did not outlive etcd's leader")
    return "the same worker all along; its lease was renewed by the next leader"


def lose_quorum(demo: Demo) -> str:
    run = demo.holder()
    leader = demo.members.leader()
    dead = [leader, next(member for member in demo.members.all if member is not leader)]
    demo.stage.say(f"{run.node} sells. {dead[0].name} and {dead[1].name} are killed: nothing can be renewed, and nobody may take over.")
    for member in dead:
        member.kill()
    killed = world.now_ns()
    node = demo.node(run.node)
    world.wait_until(lambda: node.workers("sale") == [], 15, "the worker ends", 0.02)
    ended = demo.sale.look()[-1].last
    demo.stage.say(f"The worker was told to end {span(ended - killed)} later, while its lease was certainly its own.")
    time.sleep(2)
    if demo.sale.holder().name != run.name:
        raise ClusterError("somebody began without a quorum")
    demo.members.start(dead)
    back = world.now_ns()
    after = demo.after(run, 45)
    demo.stage.say(f"Both are started again, and {after.node} sells {span(after.first - back)} later, with fence {after.fence[1]}.")
    demo.stand_by(after.node)
    return f"ended {span(ended - killed)} after the quorum was lost; somebody sold {span(after.first - back)} after it was back"


ACTS: dict[str, tuple[str, Callable[[Demo], str]]] = {
    "move": ("an operator moves it", move),
    "stop": ("SIGTERM of a node", stop_node),
    "worker": ("kill -9 of the worker", kill_worker),
    "supervisor": ("kill -9 of the supervisor", kill_supervisor),
    "node": ("kill -9 of the keeper: the node is gone", kill_node),
    "freeze": ("SIGSTOP of a whole node; its worker alone wakes up", freeze_node),
    "leader": ("kill -9 of etcd's leader", kill_leader),
    "quorum": ("kill -9 of two members of etcd of three", lose_quorum),
}
QUICK = ("move", "worker", "freeze")


def main() -> int:
    if sys.version_info < (3, 10):
        raise SystemExit("it needs Python 3.10 or newer")
    options = arguments()

    def leave(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    world.become_subreaper()
    demo = Demo(options)
    try:
        demo.start()
        for number, name in enumerate(options.play, 1):
            demo.act(number, name)
        demo.rush()
        return demo.judge()
    except KeyboardInterrupt:
        print("\ninterrupted; what was started is ended", file=sys.stderr)
        return 130
    except (ClusterError, world.BenchError, OSError, sqlite3.Error, subprocess.TimeoutExpired) as error:
        print(f"demo: {error}", file=sys.stderr)
        logs = [node.log for node in demo.nodes] or sorted(demo.directory.glob("m?.log"))
        for log in logs:
            if log.exists() and log.stat().st_size:
                print(f"--- {log.relative_to(demo.directory)} ends so ---\n{log.read_text()[-1500:]}", file=sys.stderr)
        return 1
    finally:
        demo.end()


if __name__ == "__main__":
    sys.exit(main())
