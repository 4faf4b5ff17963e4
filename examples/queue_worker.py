#!/usr/bin/env python3
"""A worker that does one job after the other, and never leaves one half done when it is asked to stop.

    [fleet.mail]
    command = ["/usr/bin/python3", "/srv/mail/queue_worker.py", "/var/spool/mail-jobs"]
    workers = 2
    ready = "notify"
    stop = { timeout = "10s", extend_max = "5m" }   # a long job may ask for more than 10 s, up to 5 min

A job is a file in SPOOL/new; its content is how many steps of half a second it takes. Put it there by rename(2), so that no worker
sees half of it. Without a spool directory the worker makes jobs up.
"""

import itertools
import os
import pathlib
import random
import select
import signal
import socket
import sys
import time

SLOT = os.environ.get("LEASEHOLD_SLOT", "0")
STEP_SECONDS = 0.5


def notify(text):
    """sd_notify(3): one datagram; nobody listens when run by hand."""
    name = os.environ.get("NOTIFY_SOCKET")
    if name:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(text.encode(), "\0" + name[1:] if name[0] == "@" else name)


class Spool:
    """Jobs are taken by renaming them into a directory of our slot: of two workers that try, one succeeds."""

    def __init__(self, path):
        self.new = pathlib.Path(path) / "new"
        self.mine = pathlib.Path(path) / f"slot-{SLOT}"
        self.bad = pathlib.Path(path) / "failed"
        for directory in (self.new, self.mine, self.bad):
            directory.mkdir(parents=True, exist_ok=True)
        # What a predecessor in this slot had in hand when it was killed. A slot never has two workers at a time, so nobody
        # works on it now; but it may be nearly done, so jobs must bear being done twice.
        for job in self.mine.iterdir():
            job.rename(self.new / job.name)

    def take(self):
        for job in sorted(self.new.iterdir()):
            try:
                return job.rename(self.mine / job.name)
            except FileNotFoundError:
                continue  # another worker was faster

    def steps(self, job):
        return int(job.read_text())

    def done(self, job):
        job.unlink()

    def failed(self, job):
        job.rename(self.bad / job.name)


class Toys:
    """Jobs out of thin air, for trying things out."""

    def __init__(self):
        self.names = (pathlib.Path(f"toy-{n}") for n in itertools.count(1))

    def take(self):
        return next(self.names)

    def steps(self, job):
        return random.randint(1, 10)

    def done(self, job):
        pass

    failed = done


def work(jobs, job, stopping):
    """Does one job, step by step."""
    begun = time.monotonic()
    steps = jobs.steps(job)
    for step in range(steps):
        # Said after progress, not by a timer: a job that hangs gets neither more time nor the watchdog's patience.
        notify(f"WATCHDOG=1\nSTATUS={job.name}: step {step + 1} of {steps}")
        if stopping:
            # "Not before five seconds from now": the step, and room for its being slow.
            notify("EXTEND_TIMEOUT_USEC=5000000")
        time.sleep(STEP_SECONDS)  # the work itself
    jobs.done(job)
    print(f"{job.name}: {steps} steps in {time.monotonic() - begun:.1f} s", flush=True)


def main():
    jobs = Spool(sys.argv[1]) if len(sys.argv) > 1 else Toys()
    # The signal only leaves a note; the job in hand is not disturbed. The byte it writes ends the wait for a next job at once.
    stopping = []
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())

    def stop(number, frame):
        stopping.append(number)
        notify("STOPPING=1\nEXTEND_TIMEOUT_USEC=5000000")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

    notify("READY=1\nSTATUS=waiting for a job")
    while not stopping:
        job = jobs.take()
        if job:
            try:
                work(jobs, job, stopping)
            except Exception as error:
                # Put aside. To crash instead would hand the same job to the next generation, for ever.
                jobs.failed(job)
                print(f"{job.name}: failed: {error}", flush=True)
        else:
            # A real queue's client would block here until a job comes; a directory is looked at once a second.
            notify("WATCHDOG=1\nSTATUS=waiting for a job")
            select.select([wake], [], [], 1)


if __name__ == "__main__":
    main()
