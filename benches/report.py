"""From samples to a table: what each figure is called, how it is summed up, and what leasehold promises of it."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rows import KILL_GAP_S, SUPERVISOR_KILLS, Results
from world import MS, SECOND

ALONE, CLUSTER = "results", "results of a cluster"  # the tables, by the comments around them

Judgement = tuple[str, bool | None]  # the target in words; met, missed, or nothing to say


# --- numbers -----------------------------------------------------------------------------------------------------


def duration(ns: float) -> str:
    """Three significant digits or so, in the unit a person would choose."""
    for unit, name in ((SECOND, "s"), (MS, "ms")):
        if ns >= unit:
            return f"{ns / unit:.{max(0, 2 - int(math.log10(ns / unit)))}f} {name}"
    return f"{ns / 1000:.0f} µs"


def nanoseconds(ns: float) -> str:
    """Of something that is over before a microsecond is."""
    return f"{ns:,.0f} ns"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def throughput(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e6:,.0f} MB/s"


def per_second(rate: float) -> str:
    return f"{rate:.1f} /s"


def percent(share: float) -> str:
    return f"{share * 100:.2f} %"


def count(number: float) -> str:
    return f"{number:,.0f}"


def quantile(share: float) -> Callable[[list[float]], float]:
    """The sample below which `share` of them lie; of few samples the worst."""
    return lambda samples: sorted(samples)[min(len(samples) - 1, math.ceil(share * len(samples)) - 1)]


# --- targets -----------------------------------------------------------------------------------------------------


def ratio_at_most(limit: float, only_at: int | None = None):
    """Of the baseline's figure; `only_at`: the number of workers the target was set for."""

    def judge(workers: int, _value: float | None, ratio: float | None) -> Judgement:
        if only_at not in (None, workers):
            return "", None
        return f"≤ {limit:g} ×", None if ratio is None else ratio <= limit

    return judge


def ratio_at_least(limit: float):
    """Of the baseline's figure."""
    return lambda _workers, _value, ratio: (f"≥ {limit:g} ×", None if ratio is None else ratio >= limit)


def page_check(_workers: int, value: float | None, ratio: float | None) -> Judgement:
    """Both: in nanoseconds, and beside a round trip."""
    met = None if value is None or ratio is None else value <= 100 and ratio <= 1 / 47
    return "≤ 100 ns, ≤ 1/47 ×", met


def at_most(limit: Callable[[int], float], text: Callable[[float], str]):
    """An absolute limit, which may grow with the number of workers."""

    def judge(workers: int, value: float | None, _ratio: float | None) -> Judgement:
        return f"≤ {text(limit(workers))}", None if value is None else value <= limit(workers)

    return judge


def zero(_workers: int, value: float | None, _ratio: float | None) -> Judgement:
    """What must not happen at all."""
    return "0", None if value is None else value == 0


def untargeted(_workers: int, _value: float | None, _ratio: float | None) -> Judgement:
    """Told for its own sake."""
    return "", None


# --- figures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A line of the table for each number of workers; `samples` is the name it was noted under in rows.py."""

    samples: str
    title: str
    text: Callable[[float], str]
    judge: Callable[[int, float | None, float | None], Judgement]
    summary: Callable[[list[float]], float] = statistics.median


P50, P99, MEAN = quantile(0.5), quantile(0.99), statistics.fmean

FIGURES = (
    Figure("up", "start: exec to the last worker's report", duration, ratio_at_most(1.3, 1000)),
    Figure("crash", "crash to the replacement's report, p50", duration, ratio_at_most(2), P50),
    Figure("crash", "crash to the replacement's report, p99", duration, ratio_at_most(5), P99),
    Figure("stop", "stop: SIGTERM to the last one gone", duration, ratio_at_most(1.3, 1000)),
    Figure("left", "processes left after the stop", count, zero, sum),
    Figure("lost_or_doubled", "workers lost or doubled before the stop", count, zero, sum),
    Figure("memory", "memory: PSS of keeper and supervisor", megabytes, at_most(lambda n: 10e6 + 3e3 * n, megabytes)),
    Figure("idle", "idle: wake-ups", per_second, at_most(lambda _: 1, per_second)),
    Figure("sampling", "following the load of idle workers: share of one core", percent,
           at_most(lambda _: 0.005, percent)),
    Figure("log_65536", "log capture, 64 KiB writes", throughput, ratio_at_least(0.8)),
    Figure("log_4096", "log capture, 4 KiB writes", throughput, ratio_at_least(0.65)),
    Figure("log_lines", "log capture: lines lost, doubled or damaged", count, zero, sum),
    Figure("status", "`status --json`, whole process", duration, at_most(lambda _: 10 * MS, duration)),
    Figure("kill_lost", "supervisor killed: workers lost", count, zero, sum),
    Figure("kill_doubled", "supervisor killed: workers doubled or started unasked", count, zero, sum),
    Figure("kill_refused", "supervisor killed: health connections refused", count, zero, sum),
    Figure("kill_broken", "supervisor killed: accepted health requests not answered 200", count, untargeted, sum),
    Figure("kill_asked", "supervisor killed: health requests made", count, untargeted, sum),
    Figure("kill_lines", "supervisor killed: log lines lost, doubled or damaged", count, zero, sum),
    Figure("kill_back", "supervisor killed: until `status` is right, median", duration, untargeted),
    Figure("kill_back", "supervisor killed: until `status` is right, worst", duration,
           at_most(lambda _: 100 * MS, duration), max),
    *(
        figure
        for how, text in (("stop", "holder stopped in order"), ("kill", "holder's keeper killed"), ("flock", "flock(1) ended"))
        for figure in (
            Figure(f"takeover_{how}", f"takeover, {text}: end to the successor's first instruction, p50", duration,
                   at_most(lambda _: MS, duration), P50),
            Figure(f"takeover_{how}", f"takeover, {text}: end to the successor's first instruction, p99", duration,
                   at_most(lambda _: 5 * MS, duration), P99),
            Figure(f"takeover_{how}_report", f"takeover, {text}: end to the top of its main, p50", duration,
                   untargeted, P50),
        )
    ),
    Figure("lock", "`lock NAME -- CMD`, nobody else there, whole process", duration, untargeted),
    Figure("page", "lease page: one look; baseline: a round trip over loopback TCP", nanoseconds, page_check),
    *(
        Figure(f"deadline_{figure}_{load}", f"deadline to {what}, {text}, {name}", duration, untargeted, summary)
        for load, text in (("quiet", "quiet machine"), ("busy", "64 busy loops"))
        for figure, what in (("kill", "the kill"), ("end", "the worker's end"))
        for name, summary in (("p50", P50), ("p99", P99), ("worst", max))
    ),
    Figure("grandchildren", "left of 6 grandchildren after the stop", count, zero, max),
)  # fmt: skip

NEAR, FAR = "on one site", "100 ms to etcd and back"
GETS, RUNS = "the transaction that gets the lock", "request to the worker's first instruction"
TO_HEIR = "to the successor's first instruction"
WRITE, SUM, DUE = "; baseline: a write", "; baseline: 1.2 writes and a restart", "; baseline: `lease_ttl` and `takeover_delay`"


def hand_overs(where: str, text: str) -> tuple[Figure, ...]:
    """A hand-over and its parts."""
    points = (("end", "the old worker's end", SUM), ("sent", "the release, when sent,", SUM), ("asked", "`singletons move`", ""))
    return (
        Figure(f"put_{where}", f"hand-over, {text}: a write, p50", duration, untargeted, P50),
        Figure(f"restart_{where}", f"hand-over, {text}: a restart under the lock, which stays, p50", duration, untargeted, P50),
        *(
            Figure(f"handover_{point}_{where}", f"hand-over, {text}: {what} {TO_HEIR}, {name}{beside}", duration,
                   ratio_at_most(1) if beside and name == "p50" else untargeted, summary)
            for point, what, beside in points
            for name, summary in (("p50", P50), ("p99", P99))
        ),
    )  # fmt: skip


CLUSTER_FIGURES = (
    *(
        Figure(f"acquire_{part}_site", f"acquire, {NEAR}: {what}, {name}{WRITE}", duration, judge, summary)
        for part, what in (("txn", GETS), ("start", RUNS))
        for name, summary, judge in (
            ("mean", MEAN, at_most(lambda _: 8.3 * MS, duration)),
            ("p50", P50, untargeted),
            ("p99", P99, untargeted),
        )
    ),
    Figure("acquire_txn_far", f"acquire, {FAR}: {GETS}, p50{WRITE}", duration, untargeted, P50),
    Figure("acquire_start_far", f"acquire, {FAR}: {RUNS}, p50{WRITE}", duration, ratio_at_most(1.2), P50),
    Figure("acquire_writes", "acquire: writes to etcd until the worker runs, most", count, untargeted, max),
    Figure("acquire_command", "`lock --cluster NAME -- CMD`, nobody else there, whole process; baseline: `etcdctl lock`",
           duration, untargeted),
    *hand_overs("site", NEAR),
    *hand_overs("far", FAR),
    Figure("failover_stop", f"holder's daemon stopped: its worker's end {TO_HEIR}, p50{WRITE}", duration, untargeted, P50),
    Figure("failover_stop", f"holder's daemon stopped: its worker's end {TO_HEIR}, p99{WRITE}", duration, untargeted, P99),
    *(
        Figure(f"failover_{point}", f"holder's node dead: {what} {TO_HEIR}, {name}{beside}", duration, untargeted, summary)
        for point, what, beside in (("renewal", "its last renewal", DUE), ("end", "its worker's end", ""))
        for name, summary in (("p50", P50), ("worst", max))
    ),
    *(
        Figure(f"failover_renewal_{ttl}", f"the same with a lease of {ttl} s: its last renewal {TO_HEIR}, {name}{DUE}", duration, untargeted, summary)
        for ttl in (5, 20)
        for name, summary in (("p50", P50), ("worst", max))
    ),
    Figure("cluster_overlap", "successors that began before the old worker's end", count, zero, sum),
    Figure("cluster_fence", "successors whose fence is no later", count, zero, sum),
    Figure("cluster_unasked", "workers started beside a successor", count, zero, sum),
    Figure("cluster_left", "processes left after the stop", count, zero, sum),
)  # fmt: skip
TABLES = {ALONE: FIGURES, CLUSTER: CLUSTER_FIGURES}


# --- the table ---------------------------------------------------------------------------------------------------


def line(figure: Figure, workers: int, results: Results) -> str | None:
    """One line of the table, or None where neither of the two was measured."""
    values = {}
    for subject in ("baseline", "leasehold"):
        samples = results.samples.get((figure.samples, workers, subject))
        values[subject] = figure.summary(samples) if samples else None
    floor, value = values["baseline"], values["leasehold"]
    if floor is None and value is None:
        return None
    ratio = value / floor if floor and value is not None and figure.text is not count else None
    target, met = figure.judge(workers, value, ratio)
    cells = [
        figure.title,
        f"{workers:,}",
        *("–" if one is None else figure.text(one) for one in (floor, value)),
        "–" if ratio is None else f"{ratio:.2f} ×",
        target or "–",
        {True: "yes", False: "**no**", None: "–"}[met],
    ]
    return f"| {' | '.join(cells)} |"


def table(figures: tuple[Figure, ...], results: Results, sizes: list[int]) -> str:
    """A whole table in Markdown; nothing if no line of it was measured."""
    all_sizes = sorted({*sizes, *(workers for _, workers, _ in results.samples)})
    lines = [line(figure, workers, results) for figure in figures for workers in all_sizes]
    lines = [text for text in lines if text is not None]
    head = ["| what | workers | baseline | leasehold | ratio | target | met |", "|---|---:|---:|---:|---:|---:|:-:|"]
    return "\n".join(head + lines) if lines else ""


def machine(load: float, repetitions: int, version: str, member: str) -> dict[str, str]:
    """Where, when and how often: what a reader needs before believing each of the tables."""
    models = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    model = models[0].split(":", 1)[1].strip() if models else platform.machine()
    kernel = platform.release().split("-")[0]
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    where = (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {version}; {os.cpu_count()} cores ({model}), "
        f"{memory_gb:.0f} GB, Linux {kernel}, load average {load:.2f} at the start; repetitions: {repetitions}"
    )
    return {
        ALONE: f"{where}, each with {SUPERVISOR_KILLS} kills of the supervisor {KILL_GAP_S:g} s apart.",
        CLUSTER: f"{where}; {member}.",
    }


def faults(results: Results) -> str:
    """What must not have happened but did; nothing if nothing did."""
    lines = "".join(f"\n- {fault.splitlines()[0]}" for fault in results.faults)
    return f"\nFaults:\n{lines}\n" if lines else ""


def sections(results: Results, sizes: list[int], headings: dict[str, str]) -> dict[str, str]:
    """The tables of which something was measured, each with the run's faults: what `--write` puts between its two comments."""
    tables = {name: table(figures, results, sizes) for name, figures in TABLES.items()}
    return {name: f"{headings[name]}\n\n{text}\n{faults(results)}" for name, text in tables.items() if text}


def write_samples(path: Path, results: Results) -> None:
    """Every sample as JSON, in nanoseconds, bytes, or plain numbers."""
    samples = [
        {"figure": figure, "workers": workers, "subject": subject, "samples": values}
        for (figure, workers, subject), values in results.samples.items()
    ]
    path.write_text(json.dumps(samples, indent=1) + "\n")


def comments(name: str) -> tuple[str, str]:
    """What stands before and after a table."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_sections(path: Path, texts: dict[str, str]) -> None:
    """Puts each table between its two comments, and leaves the others as they were."""
    document = path.read_text()
    for name, text in texts.items():
        begin, end = comments(name)
        if begin not in document or end not in document:
            raise SystemExit(f"{path}: no '{begin}' and '{end}' to write between")
        head, rest = document.split(begin, 1)
        document = f"{head}{begin}\n\n{text}\n{end}{rest.split(end, 1)[1]}"
    path.write_text(document)
