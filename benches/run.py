#!/usr/bin/env python3
"""Measures leasehold beside the least a C program can do, interleaved in one run, and prints a table with ratios.

Nothing here fails because it was slow. What must never happen (a line lost, a worker doubled, a process left) is a
fault: faults are listed at the end and make the exit code 1.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # no __pycache__ beside the sources

import etcd
import leases
import nodes
import report
import rows
import world
from subjects import Baseline, Leasehold, Workspace
from world import BenchError

ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/leasehold", help="what to measure")
    parser.add_argument("--only", choices=("baseline", "leasehold"), help="measure one of the two; no ratios then")
    parser.add_argument("--sizes", type=numbers, default=[1, 10, 100, 1000], help="numbers of workers: 1,10,100,1000")
    parser.add_argument("--rows", type=row_names, default=rows.ROWS, help=f"of {','.join(rows.ROWS)}")
    parser.add_argument("--repetitions", type=positive, default=3)
    parser.add_argument("--idle-seconds", type=float, default=10, help="how long to watch an idle fleet (10)")
    parser.add_argument("--log-bytes", type=positive, default=2**30, help="bytes written in the log row (1 GiB)")
    parser.add_argument("--directory", help="where the temporary directory is made, with room for the logs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put each table between its comments in this file")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write every single sample as JSON")
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def numbers(text: str) -> list[int]:
    return sorted({positive(word) for word in text.split(",")})


def row_names(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    for name in chosen:
        if name not in rows.ROWS:
            raise argparse.ArgumentTypeError(f"no row '{name}'; there are {', '.join(rows.ROWS)}")
    return tuple(row for row in rows.ROWS if row in chosen)


class Session:
    """One run of the benchmark: what is measured, and how each measurement is announced and guarded."""

    def __init__(self, workspace: Workspace, options: rows.Options):
        self.workspace = workspace
        self.options = options
        self.results = rows.Results()

    def attempt(self, label: str, measure, *arguments) -> None:
        """Makes one measurement; if that fails it is a fault and the others go on."""
        print(f"  {label}", file=sys.stderr, flush=True)
        try:
            measure(self.workspace, *arguments, self.results)
        except (BenchError, OSError, KeyError, subprocess.SubprocessError) as error:
            fault = f"{label}: {error if isinstance(error, BenchError) else repr(error)}"
            self.results.faults.append(fault)
            print(f"  {fault}", file=sys.stderr, flush=True)

    def repetition(self, sizes: list[int], subjects: list) -> None:
        """Every row once, both subjects next to each other: they share whatever else the machine is doing."""
        chosen = set(self.options.rows)
        for workers in sizes:
            if chosen & set(rows.FLEET_ROWS):
                for subject in subjects:
                    label = f"{subject.name}, N={workers}"
                    self.attempt(label, rows.measure_fleet, subject, workers, self.options)
        if "sampling" in chosen:
            for workers in sizes:
                for subject in subjects:
                    if isinstance(subject, Leasehold):  # the baseline follows nothing
                        label = f"{subject.name}, N={workers}, following the load"
                        self.attempt(label, rows.measure_sampling, subject, workers, self.options)
        if "log" in chosen:
            for write_size in rows.WRITE_SIZES * rows.LOG_RUNS:
                for subject in subjects:
                    label = f"{subject.name}, log in writes of {write_size}"
                    self.attempt(label, rows.measure_log, subject, write_size, self.options)
        if "grandchildren" in chosen:
            for subject in subjects:
                self.attempt(f"{subject.name}, grandchildren", rows.measure_grandchildren, subject)
        for how in rows.TAKEOVERS if "takeover" in chosen else ():
            for subject in subjects:
                self.attempt(f"{subject.name}, takeover after {how}", rows.measure_takeover, subject, how)
        if "lock" in chosen:
            for subject in subjects:
                self.attempt(f"{subject.name}, one command under a lock", rows.measure_lock, subject)
        if "page" in chosen:
            for subject in subjects:
                if isinstance(subject, Leasehold):  # the round trip beside it is what it is compared with
                    self.attempt(f"{subject.name}, looks at a lease page", leases.measure_page, subject)
        for load in leases.LOADS if "deadline" in chosen else ():
            for subject in subjects:
                self.attempt(f"{subject.name}, deadlines, {load}", leases.measure_deadlines, subject, load)
        if "kill" in chosen:
            for subject in subjects:
                if isinstance(subject, Leasehold):  # the baseline has nothing that could go on without it
                    for workers in sizes:
                        label = f"{subject.name}, N={workers}, kill -9 of the supervisor"
                        self.attempt(label, rows.measure_kill, subject, workers)
        for subject in subjects:
            if isinstance(subject, Leasehold):  # puts and etcdctl take turns with it inside
                self.cluster(subject, chosen)

    def cluster(self, subject: Leasehold, chosen: set[str]) -> None:
        """The rows with an etcd."""
        for where in nodes.SITES:
            if "acquire" in chosen:
                self.attempt(f"{subject.name}, acquire, {where}", nodes.measure_acquire, subject, where)
        if "acquire" in chosen:
            self.attempt(f"{subject.name}, one command under a lock of the cluster", nodes.measure_commands, subject)
        for where in nodes.SITES:
            if "handover" in chosen:
                self.attempt(f"{subject.name}, hand-over, {where}", nodes.measure_handover, subject, where)
        if "failover" in chosen:
            self.attempt(f"{subject.name}, failover", nodes.measure_failover, subject)


def prepare() -> None:
    """As many descriptors as we may have, orphans come to us, and SIGTERM tidies up like ^C."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    world.become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot work, before anything is started."""
    if options.only != "baseline" and not os.access(options.binary, os.X_OK):
        sys.exit(f"no program at {options.binary}: cargo build --release, or --binary FILE, or --only baseline")
    if options.write and not options.write.is_file():
        sys.exit(f"{options.write}: no such file")
    for table in report.TABLES if options.write else ():
        for comment in report.comments(table):
            if comment not in options.write.read_text():
                sys.exit(f"{options.write}: no '{comment}' to write at")


def main() -> int:
    options = arguments()
    check(options)
    prepare()
    load = os.getloadavg()[0]
    workspace = Workspace(options.directory)
    try:
        workspace.build()
        member = etcd.described(workspace.directory)
        if "log" in options.rows and shutil.disk_usage(workspace.directory).free < 2 * options.log_bytes:
            sys.exit(f"{workspace.directory}: less than twice --log-bytes free; see --directory")
        subjects, version = [], "the baseline alone"
        if options.only != "leasehold":
            subjects.append(Baseline(workspace))
        if options.only != "baseline":
            subjects.append(Leasehold(workspace, options.binary))
            version = subjects[-1].version()
        session = Session(workspace, rows.Options(options.rows, options.idle_seconds, options.log_bytes))
        for repetition in range(options.repetitions):
            print(f"repetition {repetition + 1} of {options.repetitions}", file=sys.stderr, flush=True)
            session.repetition(options.sizes, subjects[:: -1 if repetition % 2 else 1])
    finally:
        workspace.close()
    headings = report.machine(load, options.repetitions, version, member)
    texts = report.sections(session.results, options.sizes, headings)
    print("\n".join(texts.values()) or report.faults(session.results))
    if options.samples:
        report.write_samples(options.samples, session.results)
    if options.write:
        report.replace_sections(options.write, texts)
    return 1 if session.results.faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BenchError as error:
        sys.exit(f"bench: {error}")
