#!/usr/bin/env python3
"""Payments, each made exactly once: a key that says which payment it is, and the fence, in one transaction of whoever pays.

    [fleet.payments]
    command = ["/usr/bin/python3", "/srv/shop/payments.py", "/srv/shop/queue.db", "/srv/shop/bank.db"]
    singleton = { scope = "cluster" }
    ready = "notify"
    stop = { timeout = "5s" }           # the payment in hand is made first

The queue and the bank are two stores, as they are in life, so no transaction covers both: a worker that dies in between leaves a payment
that was made and is still waiting. The next one asks for it again, and the bank knows its key. Try it on one machine, in this directory:

    python3 payments.py queue.db bank.db --open
    leasehold lock payments -- python3 payments.py queue.db bank.db &       the worker
    python3 payments.py queue.db bank.db --pay alice 12.50 --key invoice-17
    python3 payments.py queue.db bank.db --report
"""

import argparse
import decimal
import json
import os
import sqlite3
import sys

sys.dont_write_bytecode = True  # no __pycache__ beside the sources
import fenced_store
from sale import LOOK_S, WRITE_S, Stop, notify, outside

QUEUE = """
CREATE TABLE IF NOT EXISTS payments (
  key TEXT PRIMARY KEY, payee TEXT NOT NULL, cents INTEGER NOT NULL, receipt_ms INTEGER NOT NULL DEFAULT 0,
  state TEXT NOT NULL DEFAULT 'waiting'
);
CREATE INDEX IF NOT EXISTS waiting ON payments (state) WHERE state = 'waiting';
"""
BANK = """
CREATE TABLE IF NOT EXISTS ledger (
  key TEXT PRIMARY KEY, payee TEXT NOT NULL, cents INTEGER NOT NULL, node TEXT NOT NULL, epoch INTEGER NOT NULL, fence INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS accounts (payee TEXT PRIMARY KEY, cents INTEGER NOT NULL);
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", help="a SQLite file")
    parser.add_argument("bank", help="another one")
    parser.add_argument("--open", action="store_true", help="make both")
    parser.add_argument("--pay", nargs=2, metavar=("PAYEE", "AMOUNT"), help="ask for a payment; once, however often it is asked for")
    parser.add_argument("--key", help="which payment it is; needed with --pay")
    parser.add_argument("--receipt-ms", type=int, default=0, help="how long it takes to send its receipt, once it is made")
    parser.add_argument("--report", action="store_true", help="what was paid, as JSON; exit code 1 if it does not add up")
    parser.add_argument("--record", metavar="FILE", help="the worker says there who it is, and when")
    options = parser.parse_args()
    if options.pay and not options.key:
        parser.error("--pay needs --key: without one nobody could tell a second payment from a second try")
    return options


def run(queue: fenced_store.Store, bank: fenced_store.Store, lease: fenced_store.Lease, record: fenced_store.Record, stop: Stop) -> None:
    # From here on both refuse whoever was before us, also while there is nothing to pay.
    for store in (bank, queue):
        with store.write():
            pass
    notify("READY=1")
    made = 0
    while not stop.asked:
        lease.check(WRITE_S)
        record.say("there")
        query = "SELECT key, payee, cents, receipt_ms FROM payments WHERE state = 'waiting' ORDER BY rowid LIMIT 1"
        waiting = queue.db.execute(query).fetchone()
        if waiting is None:
            stop.wait(LOOK_S)
            continue
        key, payee, cents, receipt_ms = waiting
        lease.check(2 * WRITE_S + receipt_ms / 1000)
        pay(bank, lease, key, payee, cents)
        # Who is killed here has paid, and the queue does not know; whoever is next finds the key at the bank.
        if receipt_ms:
            print(f"{key}: paid; sending the receipt", flush=True)
            outside(receipt_ms, record)
        with queue.write() as db:
            db.execute("UPDATE payments SET state = 'paid' WHERE key = ?", (key,))
        made += 1
        notify(f"STATUS={made} payments made")


def pay(bank: fenced_store.Store, lease: fenced_store.Lease, key: str, payee: str, cents: int) -> None:
    with bank.write() as db:
        entry = "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
        if db.execute(entry, (key, payee, cents, lease.node, lease.epoch, lease.fence)).rowcount == 0:
            print(f"{key}: the bank has paid it already", flush=True)
            return
        account = "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (payee) DO UPDATE SET cents = cents + excluded.cents"
        db.execute(account, (payee, cents))


def ask(queue: str, key: str, payee: str, amount: str, receipt_ms: int = 0) -> int:
    """Into the queue, unless it is there."""
    try:
        cents = decimal.Decimal(amount) * 100
        whole = cents > 0 and cents == int(cents)
    except (decimal.InvalidOperation, OverflowError, ValueError):
        whole = False
    if not whole:
        raise SystemExit(f"{amount} is no amount")
    db = fenced_store.connect(queue)
    entry = "INSERT INTO payments (key, payee, cents, receipt_ms) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
    db.execute(entry, (key, payee, int(cents), receipt_ms))
    # The same words again are a second try; other words under one key are a mistake, which nobody must take for a success.
    if db.execute("SELECT payee, cents FROM payments WHERE key = ?", (key,)).fetchone() != (payee, int(cents)):
        raise SystemExit(f"{key} is the key of another payment")
    return 0


def report(queue: str, bank: str) -> int:
    """What was asked for, beside what the accounts got."""
    db, at_bank = fenced_store.connect(queue), fenced_store.connect(bank)
    asked, cents_asked, waiting = db.execute(
        "SELECT count(*), coalesce(sum(cents), 0), coalesce(sum(state = 'waiting'), 0) FROM payments"
    ).fetchone()
    made, cents_paid = at_bank.execute(
        "SELECT (SELECT count(*) FROM ledger), (SELECT coalesce(sum(cents), 0) FROM accounts)"
    ).fetchone()
    adds_up = waiting > 0 or (made, cents_paid) == (asked, cents_asked)
    said = {"asked": asked, "made": made, "waiting": waiting, "cents_asked": cents_asked, "cents_paid": cents_paid, "adds_up": adds_up}
    print(json.dumps(said))
    return 0 if adds_up else 1


def main() -> int:
    options = arguments()
    if options.open:
        fenced_store.create(options.queue, QUEUE)
        fenced_store.create(options.bank, BANK)
        return 0
    for path in (options.queue, options.bank):
        if not os.path.exists(path):
            raise SystemExit(f"there is no {path}: make it with --open")
    if options.pay:
        return ask(options.queue, options.key, *options.pay, options.receipt_ms)
    if options.report:
        return report(options.queue, options.bank)
    lease = fenced_store.Lease()
    record = fenced_store.Record(options.record, lease)
    queue, bank = (fenced_store.Store(path, "payments", lease) for path in (options.queue, options.bank))
    try:
        run(queue, bank, lease, record, Stop())
    except (fenced_store.Fenced, fenced_store.Late) as why:
        word = type(why).__name__.lower()
        record.say(f"{word}: {why}")
        print(f"not written ({word}): {why}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except sqlite3.Error as error:
        sys.exit(f"payments.py: {error}")
