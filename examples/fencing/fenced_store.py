"""Writes that an old holder cannot make: the worker looks at its page first, and the store refuses whoever is not the newest.

    lease = Lease()                              # what leasehold gave to this worker
    store = Store("shop.db", "sale", lease)
    while True:
        lease.check(takes=0.5)                   # Late, unless half a second is left; costs two clock readings
        answer = ask_somebody()                  # whatever happens between the look and the write, a pause of the machine too ...
        with store.write() as db:                # ... the store refuses what comes too late: Fenced
            db.execute("UPDATE stock SET units = ?", (left,))

The page alone is not enough: a process may be stopped between a look and the write behind it, and a machine that its hypervisor
pauses has clocks that stand still. The fence alone is not enough either, where something else than the store is written to.

The order of holders is (epoch, fence): the fence grows with every holder, and an operator raises the epoch (`etcd.epoch`) when etcd was
restored from a backup that has forgotten some. Both belong to one lock: a store that was written under another lock's fences
(`leasehold lock`, scope = "node") knows numbers of another size.
"""

import contextlib
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Iterator, Optional

# Copied into a program, both files lie side by side, and this line is not needed.
sys.path.append(str(Path(__file__).resolve().parent.parent / "page"))
import leasehold_page

TABLE = """
CREATE TABLE IF NOT EXISTS fence (resource TEXT PRIMARY KEY, epoch BIGINT NOT NULL, fence BIGINT NOT NULL)
"""

# The first statement of every write. 0 rows: somebody newer has written. PostgreSQL takes the same words (with its driver's %s for ?), and
# its row lock lets two such transactions through one after the other.
CLAIM = """
INSERT INTO fence (resource, epoch, fence) VALUES (?, ?, ?)
ON CONFLICT (resource) DO UPDATE SET epoch = excluded.epoch, fence = excluded.fence
WHERE (fence.epoch, fence.fence) <= (excluded.epoch, excluded.fence)
"""


class Late(Exception):
    """The page says that no time is left for this write."""


class Fenced(Exception):
    """The store says that somebody newer has written."""


class Lease:
    """What leasehold gave to this worker: its place in the order of holders, and its page."""

    def __init__(self):
        try:
            self.fence = int(os.environ["LEASEHOLD_FENCE"])
            self.page = leasehold_page.Page()
        except KeyError as missing:
            raise SystemExit(f"no {missing.args[0]}: start it as a singleton of leasehold's, or by hand: leasehold lock NAME -- ...") from None
        self.epoch = int(os.environ.get("LEASEHOLD_EPOCH", 0))
        self.node = os.environ.get("LEASEHOLD_NODE", "here")

    def check(self, takes: float) -> None:
        """Before something that takes so many seconds, and must be over when the lease is."""
        left = self.page.left()
        if left <= takes:
            raise Late(f"{left:.3f} s are left, and {takes:g} s are needed")

    def __str__(self) -> str:
        return f"{self.epoch}:{self.fence}"


class Store:
    """A SQLite file in which one resource is written by its newest holder alone. Another machine's workers need a server in its place."""

    def __init__(self, path: str, resource: str, lease: Lease, fenced: bool = True):
        if not os.path.exists(path):
            raise SystemExit(f"there is no {path}: make it with --open")
        self.db = connect(path)
        self.resource, self.lease, self.fenced = resource, lease, fenced

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction; also the place to read what it is based on, since nobody older can change that any more."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            if self.fenced:
                self.claim()
            yield self.db
            # It may have waited for the store; what is not committed by now is better left.
            if self.fenced:
                self.lease.check(takes=0)
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    def claim(self) -> None:
        if self.db.execute(CLAIM, (self.resource, self.lease.epoch, self.lease.fence)).rowcount == 0:
            newest = self.db.execute("SELECT epoch, fence FROM fence WHERE resource = ?", (self.resource,)).fetchone()
            raise Fenced(f"{self.lease} is older than {newest[0]}:{newest[1]}")


class Record:
    """Says who is there, and when, in a file beside the store: what a failover is judged by from outside. None is kept without a path."""

    def __init__(self, path: Optional[str], lease: Lease):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666) if path else None
        # A pid says nothing beyond its namespace; the daemon's run and the worker's generation do.
        run, generation = os.environ.get("LEASEHOLD_RUN", "-"), os.environ.get("LEASEHOLD_GENERATION", "0")
        self.who = f"{lease.node} {run}.{generation} {lease.epoch} {lease.fence}"

    def say(self, word: str) -> None:
        if self.file is not None:
            os.write(self.file, f"{self.who} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {word}\n".encode())


def connect(path: str) -> sqlite3.Connection:
    # Transactions are begun and ended by us, not by the module.
    return sqlite3.connect(path, timeout=5, isolation_level=None)


def create(path: str, tables: str) -> sqlite3.Connection:
    """A file with these tables and the fences' one; what is there already stays."""
    db = connect(path)
    # Readers and the one writer do not wait for each other; the mode stays with the file.
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(TABLE + ";" + tables)
    return db
