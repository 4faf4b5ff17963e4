"""The table of faults: every row of tests/faults, and beside some of them what `etcdctl lock` does. Writes docs/faults.md.

    benches/faults.py            runs everything, about a quarter of an hour
"""

import json
import os
import shutil
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

Three members, two nodes' `etcdctl lock --ttl={ttl}`: who waits, and whoever holds; both are watched for 2 s after the second one began, or for three
leases if it does not.

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


# One process, all of one client's ways to the members: whoever stops it has cut that client off.
WIRE = """
import asyncio, sys

async def carry(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def way(near, far):
    async def meet(reader, writer):
        there = await asyncio.open_connection("127.0.0.1", far)
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer), return_exceptions=True)
    await asyncio.start_server(meet, "127.0.0.1", near)

async def main():
    ports = list(map(int, sys.argv[1:]))
    for near, far in zip(ports[::2], ports[1::2]):
        await way(near, far)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Anchor:
    """Three members of etcd and two times `etcdctl lock`, the second of which waits."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.oracle = directory / "oracle"
        self.children: list[subprocess.Popen] = []
        self.clients = [free_port() for _ in range(3)]
        self.peers = [free_port() for _ in range(3)]
        self.members = [self.member(number) for number in range(3)]
        self.all = ",".join(f"http://127.0.0.1:{port}" for port in self.clients)
        until("etcd answers", 30, lambda: self.leader() is not None)
        ways = [free_port() for _ in range(3)]
        pairs = [str(port) for pair in zip(ways, self.clients) for port in pair]
        self.wire = self.start([sys.executable, "-c", WIRE, *pairs])
        until("the wire is up", 10, lambda: all(map(listens, ways)))
        self.holder = self.lock(",".join(f"http://127.0.0.1:{port}" for port in ways))
        until("one runs", 10, lambda: self.voices())
        (self.pid,) = self.voices()
        self.waiter = self.lock(self.all)
        until("another waits", 10, lambda: len(self.keys()) == 2)

    def member(self, number: int) -> subprocess.Popen:
        return self.start(["etcd", f"--data-dir={self.directory}/{number}", *self.who(number), *self.where(number)])

    def who(self, number: int) -> list[str]:
        beside = f"http://127.0.0.1:{self.peers[number]}"
        everybody = ",".join(f"m{n}=http://127.0.0.1:{port}" for n, port in enumerate(self.peers))
        return [f"--name=m{number}", f"--initial-advertise-peer-urls={beside}", f"--initial-cluster={everybody}"]

    def where(self, number: int) -> list[str]:
        here, beside = f"http://127.0.0.1:{self.clients[number]}", f"http://127.0.0.1:{self.peers[number]}"
        return [f"--listen-client-urls={here}", f"--advertise-client-urls={here}", f"--listen-peer-urls={beside}"]

    def start(self, command: list[str]) -> subprocess.Popen:
        environment = os.environ | {"ETCDCTL_API": "3"}
        quiet = subprocess.DEVNULL
        child = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
        self.children.append(child)
        return child

    def lock(self, endpoints: str) -> subprocess.Popen:
        command = ["etcdctl", f"--endpoints={endpoints}", "lock", f"--ttl={TTL}", "--", "billing"]
        return self.start([*command, sys.executable, "-c", COMMAND, str(self.oracle)])

    def ctl(self, *words: str, at: str = "") -> str:
        command = ["etcdctl", f"--endpoints={at or self.all}", *words]
        return subprocess.run(command, env=os.environ | {"ETCDCTL_API": "3"}, capture_output=True, text=True).stdout

    def must(self, *words: str, at: str = "") -> None:
        """Where a failure would be taken for what etcd did."""
        command = ["etcdctl", f"--endpoints={at or self.all}", *words]
        subprocess.run(command, env=os.environ | {"ETCDCTL_API": "3"}, capture_output=True, check=True)

    def leader(self) -> int | None:
        """The member that leads."""
        for number, port in enumerate(self.clients):
            said = self.ctl("endpoint", "status", "--write-out=json", at=f"http://127.0.0.1:{port}")
            if said and (status := json.loads(said)[0]["Status"])["leader"] == status["header"]["member_id"]:
                return number
        return None

    def keys(self) -> list[str]:
        return [line for line in self.ctl("get", "--prefix", "--keys-only", "billing/").splitlines() if line]

    def first(self) -> str:
        """The holder's key."""

        def created(key: str) -> int:
            text = self.ctl("get", key, "--write-out=fields")
            return next(int(line.split(":")[1]) for line in text.splitlines() if '"CreateRevision"' in line)

        return min(self.keys(), key=created)

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

    def verdict(self, fault: str, then=None) -> str:
        """Somebody else begins, or nobody does for three leases; both are watched for two seconds more."""
        try:
            until("the other one runs", 3 * TTL, lambda: len(self.voices()) == 2)
        except TimeoutError:
            if time.clock_gettime(time.CLOCK_BOOTTIME) - self.words()[self.pid][1] < 0.5:
                return f"| {fault} | none | none | it went on |"
            return f"| {fault} | {3 * TTL} s and on | none | nobody ran any more |"
        if then:
            then(self)
        (_, second) = self.voices()
        until("time goes by", 10, lambda: self.words()[second][1] - self.words()[second][0] > 2)
        (_, last), (first, now) = self.words()[self.pid], self.words()[second]
        both = last - first
        if both > 0:
            whole = " and on" if now - last < 0.1 else ""
            return f"| {fault} | none | **{both:.1f} s{whole}** | its command ran on beside the next one |"
        return f"| {fault} | {-both * 1000:.0f} ms | none | the next one took over |"

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


def listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def until(what: str, bound: float, condition) -> None:
    end = time.monotonic() + bound
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.01)


def sent(number: signal.Signals, *whom: str):
    """A signal to some of its processes."""

    def fault(anchor: Anchor) -> None:
        of = {"command": anchor.pid, "etcdctl": anchor.holder.pid, "wire": anchor.wire.pid}
        for one in whom:
            kill(of[one], number)

    return fault


def revived(anchor: Anchor) -> None:
    sent(signal.SIGCONT, "etcdctl", "command")(anchor)


def revoked(anchor: Anchor) -> None:
    anchor.ctl("lease", "revoke", anchor.first().rsplit("/", 1)[1])


def deleted(anchor: Anchor) -> None:
    anchor.ctl("del", anchor.first())


def leader_gets(number: signal.Signals):
    def fault(anchor: Anchor) -> None:
        kill(anchor.members[anchor.leader()].pid, number)

    return fault


def stop_members(anchor: Anchor, numbers: list[int]) -> None:
    for number in numbers:
        kill(anchor.members[number].pid, signal.SIGKILL)
        anchor.members[number].wait()


def quorum_lost(anchor: Anchor) -> None:
    """For longer than a lease lasts."""
    stop_members(anchor, [1, 2])
    time.sleep(TTL + 1)
    for number in (1, 2):
        anchor.members[number] = anchor.member(number)


def restored(anchor: Anchor) -> None:
    snapshot = anchor.directory / "snapshot"
    anchor.must("snapshot", "save", str(snapshot), at=f"http://127.0.0.1:{anchor.clients[0]}")
    stop_members(anchor, [0, 1, 2])
    for number in range(3):
        directory = anchor.directory / str(number)
        shutil.rmtree(directory)
        token = "--initial-cluster-token=restored"
        anchor.must("snapshot", "restore", str(snapshot), f"--data-dir={directory}", *anchor.who(number), token)
        anchor.members[number] = anchor.member(number)


def compacted(anchor: Anchor) -> None:
    for word in "abc":
        anchor.ctl("put", "stranger", word)
    revision = json.loads(anchor.ctl("get", "stranger", "--write-out=json"))["header"]["revision"]
    anchor.ctl("compaction", str(revision))
    sent(signal.SIGTERM, "command")(anchor)


def anchors() -> str:
    faults = [
        ("SIGTERM of the command", sent(signal.SIGTERM, "command"), None),
        ("SIGKILL of the command", sent(signal.SIGKILL, "command"), None),
        ("SIGTERM of etcdctl", sent(signal.SIGTERM, "etcdctl"), None),
        ("SIGKILL of etcdctl", sent(signal.SIGKILL, "etcdctl"), None),
        ("SIGSTOP of etcdctl", sent(signal.SIGSTOP, "etcdctl"), None),
        ("SIGKILL of etcdctl and its command, as when the machine dies", sent(signal.SIGKILL, "etcdctl", "command"), None),
        ("SIGSTOP of both, SIGCONT when the other one runs", sent(signal.SIGSTOP, "etcdctl", "command"), revived),
        ("holder cut off", sent(signal.SIGSTOP, "wire"), None),
        ("`etcdctl lease revoke`", revoked, None),
        ("`etcdctl del` of the holder's key", deleted, None),
        ("SIGKILL of etcd's leader", leader_gets(signal.SIGKILL), None),
        ("SIGSTOP of etcd's leader", leader_gets(signal.SIGSTOP), None),
        (f"two of three members stopped for {TTL + 1} s", quorum_lost, None),
        ("compaction while both are connected, then SIGTERM of the command", compacted, None),
        ("all members restored from a snapshot, with another cluster id", restored, None),
    ]
    lines = []
    for name, fault, then in faults:
        with tempfile.TemporaryDirectory() as directory:
            anchor = Anchor(Path(directory))
            try:
                fault(anchor)
                lines.append(anchor.verdict(name, then))
            finally:
                anchor.end()
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    version = subprocess.run(["etcd", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    where = f"{version}; kernel {os.uname().release.split('-')[0]}; {os.cpu_count()} processors; {time.strftime('%Y-%m-%d')}."
    beside = anchors()
    PAGE.write_text(HEAD.format(where=where) + rows() + ANCHOR.format(ttl=TTL) + beside)


main()
