#!/usr/bin/env python3
"""A flash sale: one worker sells a stock that it counts in memory. Never more than there is, whoever is killed, moved or paused.

    [fleet.sale]
    command = ["/usr/bin/python3", "/srv/shop/sale.py", "/srv/shop/shop.db"]
    singleton = { scope = "cluster" }
    ready = "notify"
    stop = { timeout = "5s" }           # the orders in hand are decided first

Buyers put orders into a table; the worker decides. Two workers that count in memory would sell the same units twice, so there is one, and
the store takes its word only while nobody newer has come (fenced_store.py). Try it on one machine, in this directory:

    python3 sale.py shop.db --open 500                      so many units
    leasehold lock sale -- python3 sale.py shop.db &        the worker
    python3 sale.py shop.db --buy 300                       so many orders
    python3 sale.py shop.db --report
"""

import argparse
import json
import os
import random
import select
import signal
import socket
import sqlite3
import sys
import time

sys.dont_write_bytecode = True  # no __pycache__ beside the sources
import fenced_store

TABLES = """
CREATE TABLE IF NOT EXISTS stock (opened INTEGER NOT NULL, units INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS orders (
  id INTEGER PRIMARY KEY, units INTEGER NOT NULL, card_ms INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'waiting'
);
CREATE INDEX IF NOT EXISTS waiting ON orders (id) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS sales (buyer INTEGER NOT NULL, units INTEGER NOT NULL, node TEXT NOT NULL, epoch INTEGER NOT NULL, fence INTEGER NOT NULL);
"""
LOOK_S = 0.005
BATCH = 50
WRITE_S = 0.2  # what a write takes at most


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shop", help="a SQLite file")
    parser.add_argument("--open", type=int, metavar="UNITS", help="make the shop, with so many units in stock")
    parser.add_argument("--buy", type=int, metavar="N", help="so many orders of one to three units")
    parser.add_argument("--card-ms", type=int, default=0, help="how long these buyers' bank takes to say yes")
    parser.add_argument("--report", action="store_true", help="what was sold, as JSON; exit code 1 if it does not add up")
    parser.add_argument("--record", metavar="FILE", help="the worker says there who it is, and when")
    parser.add_argument("--without-fence", action="store_true", help="what becomes of it without: for the demonstration")
    return parser.parse_args()


def notify(text: str) -> None:
    """sd_notify(3): one datagram; nobody listens when run by hand."""
    name = os.environ.get("NOTIFY_SOCKET")
    if name:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(text.encode(), "\0" + name[1:] if name[0] == "@" else name)


class Stop:
    """The signal only leaves a note, and ends the wait for more work at once."""

    def __init__(self):
        self.asked = False
        self.wake, self.waker = socket.socketpair()
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.ask)

    def ask(self, *_) -> None:
        self.asked = True
        notify("STOPPING=1")

    def wait(self, seconds: float) -> None:
        select.select([self.wake], [], [], seconds)


class Sale:
    """The worker."""

    def __init__(self, options: argparse.Namespace):
        self.lease = fenced_store.Lease()
        self.store = fenced_store.Store(options.shop, "sale", self.lease, fenced=not options.without_fence)
        self.record = fenced_store.Record(options.record, self.lease)
        self.stop = Stop()

    def run(self) -> None:
        # With this write whoever was before us can write no more, so what we read in it is ours to count.
        with self.store.write() as db:
            (self.left,) = db.execute("SELECT units FROM stock").fetchone()
        print(f"{self.lease} on {self.lease.node}: {self.left} units to sell", flush=True)
        notify("READY=1")
        while not self.stop.asked:
            self.lease.check(WRITE_S)
            self.record.say("there")
            query = "SELECT id, units, card_ms FROM orders WHERE state = 'waiting' ORDER BY id LIMIT ?"
            orders = self.store.db.execute(query, (BATCH,)).fetchall()
            if orders:
                self.decide(orders)
                notify(f"STATUS={self.left} units left")
            else:
                self.stop.wait(LOOK_S)

    def decide(self, orders: list) -> None:
        """Looks, thinks, writes: a worker that is stopped while it thinks has looked, and does not look again."""
        takes = WRITE_S + sum(card_ms for _, _, card_ms in orders) / 1000
        self.lease.check(takes)
        left, states, sales = self.left, [], []
        for buyer, units, card_ms in orders:
            if card_ms:
                print(f"order {buyer}: {self.lease.page.left():.1f} s are left; asking the buyer's bank", flush=True)
                outside(card_ms, self.record)
            sold = units <= left
            states.append(("sold" if sold else "sold out", buyer))
            if sold:
                left -= units
                sales.append((buyer, units, self.lease.node, self.lease.epoch, self.lease.fence))
        with self.store.write() as db:
            db.executemany("UPDATE orders SET state = ? WHERE id = ?", states)
            db.executemany("INSERT INTO sales VALUES (?, ?, ?, ?, ?)", sales)
            db.execute("UPDATE stock SET units = ?", (left,))
        self.left = left


def outside(ms: int, record: fenced_store.Record) -> None:
    """Something elsewhere takes its time: a bank, a printer."""
    until = time.monotonic() + ms / 1000
    while (rest := until - time.monotonic()) > 0:
        record.say("there")
        time.sleep(min(rest, LOOK_S))


def report(shop: str) -> int:
    db = fenced_store.connect(shop)
    # One statement, so that all numbers are of one moment.
    numbers = db.execute(
        """SELECT opened, units, (SELECT coalesce(sum(units), 0) FROM sales), (SELECT count(*) FROM sales),
        (SELECT count(DISTINCT buyer) FROM sales), (SELECT count(*) FROM orders WHERE state = 'sold out'),
        (SELECT count(*) FROM orders WHERE state = 'waiting') FROM stock"""
    ).fetchone()
    names = ("opened", "left", "units_sold", "sales", "buyers", "sold_out", "waiting")
    said = dict(zip(names, numbers))
    said["adds_up"] = said["units_sold"] + said["left"] == said["opened"] and said["left"] >= 0 and said["sales"] == said["buyers"]
    print(json.dumps(said))
    return 0 if said["adds_up"] else 1


def main() -> int:
    options = arguments()
    if options.open is not None:
        db = fenced_store.create(options.shop, TABLES)
        db.execute("INSERT INTO stock SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM stock)", (options.open, options.open))
        return 0
    if not os.path.exists(options.shop):
        raise SystemExit(f"there is no {options.shop}: make it with --open UNITS")
    if options.buy is not None:
        orders = [(random.randint(1, 3), options.card_ms) for _ in range(options.buy)]
        db = fenced_store.connect(options.shop)
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO orders (units, card_ms) VALUES (?, ?)", orders)
        db.execute("COMMIT")
        return 0
    if options.report:
        return report(options.shop)
    sale = Sale(options)
    try:
        sale.run()
    except (fenced_store.Fenced, fenced_store.Late) as why:
        word = type(why).__name__.lower()
        page = "yes" if sale.lease.page.left() > 0 else "no"
        sale.record.say(f"{word}: {why}; page: {page}")
        print(f"not written ({word}): {why}; may I write? {page}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except sqlite3.Error as error:
        sys.exit(f"sale.py: {error}")
