"""The table of faults: every row of tests/faults, and beside some of them what `etcdctl lock` does. Writes docs/faults.md.

    benches/faults.py            runs everything, about twelve minutes
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faults.md"
TTL = 5

# Says "PID BOOTTIME" again and again; it knows nothing of locks.
COMMAND = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
while True:
    os.write(file, b"%d %.6f\\n" % (os.getpid(), time.clock_gettime(time.CLOCK_BOOTTIME)))
    time.sleep(0.002)
"""

HEAD = """# Faults

What befalls a `scope = "cluster"` singleton, and what becomes of it: three members of etcd, three nodes that lock no file in common,
and workers that write who and when they are into one file. *Gap* is the longest time for which nobody ran, *overlap* that for which two
did. Workers have the strictest containment that the machine gives, a PID namespace here, where no other is named.
Each row is a test (`tests/faults`); `benches/faults.py` runs them all and writes this page.

Leases are 5 s here (killed at 3.75 s after the last renewal), and 10 s, as by default, where it is said, and in the rows of round trips,
of a node that dies, of a member that is started again and of twenty supervisors.

{where}

| fault | gap | overlap | what was seen |
| --- | --- | --- | --- |
"""

ANCHOR = """
## The same with `etcdctl lock`

`--ttl={ttl}`, two of them, one member; watched for 2 s after the second one began.

| fault | gap | overlap | what was seen |
| --- | --- | --- | --- |
"""


def rows() -> str:
    """The table's rows, as the tests write them."""
    with tempfile.TemporaryDirectory() as directory:
        table = Path(directory) / "table"
        environment = os.environ | {"LEASEHOLD_FAULTS_ALL": "1", "LEASEHOLD_FAULTS_TABLE": str(table)}
        command = ["cargo", "test", "--locked", "--test", "faults", "--", "--test-threads=1"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return table.read_text()


class Anchor:
    """One member of etcd and two times `etcdctl lock`, the second of which waits."""

    def __init__(self, directory: Path):
        client, peer = free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{client}"
        here, beside = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self.oracle = directory / "oracle"
        self.children: list[subprocess.Popen] = []
        arguments = [f"--data-dir={directory}/data", f"--listen-client-urls={here}", f"--advertise-client-urls={here}"]
        arguments += [f"--listen-peer-urls={beside}", f"--initial-advertise-peer-urls={beside}"]
        arguments += [f"--initial-cluster=default={beside}"]
        self.start(["etcd", *arguments])
        until("etcd answers", 20, lambda: self.ctl("get", "k", "--write-out=json"))
        self.holder = self.lock()
        until("one runs", 10, lambda: self.voices())
        (self.pid,) = self.voices()
        self.waiter = self.lock()
        until("another waits", 10, lambda: len(self.keys()) == 2)

    def start(self, command: list[str]) -> subprocess.Popen:
        environment = os.environ | {"ETCDCTL_API": "3"}
        quiet = subprocess.DEVNULL
        child = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
        self.children.append(child)
        return child

    def lock(self) -> subprocess.Popen:
        command = ["etcdctl", f"--endpoints={self.endpoint}", "lock", f"--ttl={TTL}", "--", "billing"]
        return self.start([*command, sys.executable, "-c", COMMAND, str(self.oracle)])

    def ctl(self, *words: str) -> str:
        command = ["etcdctl", f"--endpoints={self.endpoint}", *words]
        return subprocess.run(command, env=os.environ | {"ETCDCTL_API": "3"}, capture_output=True, text=True).stdout

    def keys(self) -> list[str]:
        return [line for line in self.ctl("get", "--prefix", "--keys-only", "billing/").splitlines() if line]

    def words(self) -> dict[int, tuple[float, float]]:
        """The first and the last word of each pid."""
        found: dict[int, tuple[float, float]] = {}
        text = self.oracle.read_text() if self.oracle.exists() else ""
        for line in text.splitlines():
            pid, at = int(line.split()[0]), float(line.split()[1])
            found[pid] = (found.get(pid, (at, at))[0], at)
        return found

    def voices(self) -> list[int]:
        return list(self.words())

    def verdict(self, fault: str, seen: str) -> str:
        """The second one began; both are watched for two seconds more."""
        try:
            until("the other one runs", TTL + 10, lambda: len(self.voices()) == 2)
        except TimeoutError:
            return f"| {fault} | for ever | none | the other one never ran |"
        (_, second) = self.voices()
        until("time goes by", 10, lambda: self.words()[second][1] - self.words()[second][0] > 2)
        (_, last), (first, now) = self.words()[self.pid], self.words()[second]
        both = last - first
        if both > 0:
            whole = now - last < 0.1
            return f"| {fault} | none | **{both:.1f} s{' and on' if whole else ''}** | {seen} |"
        return f"| {fault} | {-both * 1000:.0f} ms | none | {seen} |"

    def end(self) -> None:
        for pid in self.voices():
            kill(pid, signal.SIGKILL)
        for child in self.children:
            kill(child.pid, signal.SIGKILL)
            child.wait()


def kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what: str, bound: float, condition) -> None:
    end = time.monotonic() + bound
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.01)


def killed(anchor: Anchor) -> str:
    kill(anchor.holder.pid, signal.SIGKILL)
    return "its command ran on beside the next one"


def frozen(anchor: Anchor) -> str:
    kill(anchor.holder.pid, signal.SIGSTOP)
    return "its command ran on beside the next one"


def revoked(anchor: Anchor) -> str:
    first = min(anchor.keys(), key=lambda key: key_created(anchor, key))
    anchor.ctl("lease", "revoke", first.rsplit("/", 1)[1])
    return "nobody told its command"


def deleted(anchor: Anchor) -> str:
    anchor.ctl("del", min(anchor.keys(), key=lambda key: key_created(anchor, key)))
    return "nobody told its command"


def ended(anchor: Anchor) -> str:
    kill(anchor.pid, signal.SIGTERM)
    return "handed over"


def key_created(anchor: Anchor, key: str) -> int:
    text = anchor.ctl("get", key, "--write-out=fields")
    return next(int(line.split(":")[1]) for line in text.splitlines() if '"CreateRevision"' in line)


def anchors() -> str:
    faults = {
        "the command ends": ended,
        "SIGKILL of etcdctl": killed,
        "SIGSTOP of etcdctl": frozen,
        "`etcdctl lease revoke`": revoked,
        "`etcdctl del` of the holder's key": deleted,
    }
    lines = []
    for name, fault in faults.items():
        with tempfile.TemporaryDirectory() as directory:
            anchor = Anchor(Path(directory))
            try:
                lines.append(anchor.verdict(name, fault(anchor)))
            finally:
                anchor.end()
    return "\n".join(lines) + "\n"


def main() -> None:
    version = subprocess.run(["etcd", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    where = f"{version}; kernel {os.uname().release}; {os.cpu_count()} processors; {time.strftime('%Y-%m-%d')}."
    beside = anchors()
    PAGE.write_text(HEAD.format(where=where) + rows() + ANCHOR.format(ttl=TTL) + beside)


main()
