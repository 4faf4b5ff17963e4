"""Members of etcd and nodes of leasehold on one machine, each with a directory and ports of its own: started, asked, killed, started again."""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import world

# Half a second without a leader instead of two: leases of 5 s outlast it.
ETCD_TIMES = ["--heartbeat-interval=50", "--election-timeout=500"]


class ClusterError(Exception):
    """It could not be shown; the message says why."""


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ClusterError(
            f"{name} is not installed: apt-get install {package} (Debian, Ubuntu),\n"
            "or a release from https://github.com/etcd-io/etcd/releases (3.4 or newer) in PATH"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel gives to whoever connects: a member that is killed finds its own free again."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.sample(range(12_000, 30_000), 500):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise ClusterError("no free ports")


def with_us(command: list[str]) -> list[str]:
    """It ends when we are killed and can end nothing any more, where util-linux is there to say so."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else command


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill(pid: int) -> None:
    """SIGKILL for a child of ours, seen to its end."""
    send([pid], signal.SIGKILL)
    with contextlib.suppress(OSError):
        world.wait_for_exit(pid, 10)


class Member:
    """One of etcd's."""

    def __init__(self, name: str, directory: Path, etcd: str, client: int, peer: int):
        self.name, self.directory, self.etcd = name, directory, etcd
        self.client, self.peer = client, peer
        self.endpoint, self.beside = (f"http://127.0.0.1:{port}" for port in (self.client, self.peer))
        self.pid: int | None = None

    def start(self, all_members: list["Member"]) -> None:
        cluster = ",".join(f"{member.name}={member.beside}" for member in all_members)
        command = [self.etcd, f"--name={self.name}", f"--data-dir={self.directory / self.name}", f"--initial-cluster={cluster}",
                   f"--listen-client-urls={self.endpoint}", f"--advertise-client-urls={self.endpoint}",
                   f"--listen-peer-urls={self.beside}", f"--initial-advertise-peer-urls={self.beside}",
                   "--logger=zap", *ETCD_TIMES]  # fmt: skip
        self.pid = world.spawn(with_us(command), self.directory / f"{self.name}.log")

    def kill(self) -> None:
        pid, self.pid = self.pid, None
        kill(pid)

    def leads(self) -> bool:
        """By its own word; a member without a leader does not answer this at all, or says 0."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            connection = http.client.HTTPConnection("127.0.0.1", self.client, timeout=2)
            try:
                connection.request("POST", "/v3/maintenance/status", "{}")
                said = json.loads(connection.getresponse().read())
                return said.get("leader", "0") == said["header"]["member_id"]
            finally:
                connection.close()
        return False


class Members:
    """Three of them; two are a quorum."""

    def __init__(self, directory: Path, etcd: str):
        ports = free_ports(6)
        self.all = [Member(f"m{n}", directory, etcd, ports.pop(), ports.pop()) for n in (1, 2, 3)]
        for member in self.all:
            member.start(self.all)

    def leader(self) -> Member:
        """The member that leads; waited for."""
        found: list[Member] = []

        def leads() -> bool:
            found[:] = [member for member in self.all if member.pid is not None and member.leads()]
            return len(found) == 1

        world.wait_until(leads, 20, "a member of etcd leads", 0.02)
        return found[0]

    def start(self, members: list[Member]) -> None:
        for member in members:
            member.start(self.all)


class Node:
    """A daemon that has nothing in common with the others but etcd and the store."""

    def __init__(self, name: str, directory: Path, leasehold: str, configuration: str):
        self.name, self.directory, self.leasehold = name, directory, leasehold
        self.directory.mkdir()
        self.configuration = directory / "leasehold.toml"
        self.configuration.write_text(configuration)
        self.log = directory / "said"
        self.socket = directory / "run/control.sock"
        self.keeper: int | None = None

    def start(self) -> None:
        places = [f"--{what}-dir={self.directory / what}" for what in ("run", "state", "log")]
        self.keeper = world.spawn([self.leasehold, "run", "-c", str(self.configuration), *places], self.log)
        world.wait_until(lambda: self.status() is not None or self.has_ended(), 20, f"{self.name} answers", 0.02)
        if self.keeper is None:
            raise ClusterError(f"{self.name} does not start")

    def has_ended(self) -> bool:
        if os.waitpid(self.keeper, os.WNOHANG)[0]:
            self.keeper = None
        return self.keeper is None

    def status(self) -> dict | None:
        return world.get_json(self.socket, "/v1/status")

    def fleet(self, name: str) -> dict:
        fleets = (self.status() or {}).get("fleets", [])
        return next((fleet for fleet in fleets if fleet["name"] == name), {})

    def workers(self, fleet: str) -> list[int] | None:
        """Their pids, as this machine numbers them; None if it does not say."""
        status = self.fleet(fleet)
        return [worker["pid"] for worker in status["workers"] if worker["pid"]] if status else None

    def worker(self, fleet: str) -> int:
        pids = self.workers(fleet)
        if not pids:
            raise ClusterError(f"{self.name} shows no worker of {fleet}")
        return pids[0]

    def supervisor(self) -> int:
        status = self.status()
        if status is None:
            raise ClusterError(f"{self.name} does not answer")
        return status["supervisor"]["pid"]

    def stands_by(self, fleet: str) -> bool:
        """It waits for a lock that it knows to be another's."""
        return "held by" in ((self.fleet(fleet).get("gate") or {}).get("holder") or "")

    def say(self, *words: str) -> None:
        command = [self.leasehold, *words, "--socket", str(self.socket)]
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if said.returncode != 0:
            raise ClusterError(f"leasehold {' '.join(words)}: {said.stderr.strip()}")

    def stop(self) -> None:
        """As a shutdown of the machine would: it drains."""
        pid, self.keeper = self.keeper, None
        send([pid], signal.SIGTERM)
        if world.wait_for_exit(pid, 20) != 0:
            raise ClusterError(f"{self.name} did not end well")

    def kill(self) -> None:
        """kill -9 of the keeper; what is left of it is the supervisor's to end."""
        pid, self.keeper = self.keeper, None
        kill(pid)


def end(nodes: list[Node], mine: int) -> None:
    """All nodes, drained; then whatever else came from us, by pid."""
    waking = descendants(mine)
    send(waking, signal.SIGCONT)
    keepers = [node.keeper for node in nodes if node.keeper is not None]
    send(keepers, signal.SIGTERM)
    until = time.monotonic() + 15
    for keeper in keepers:
        with contextlib.suppress(OSError):
            world.wait_for_exit(keeper, max(0.0, until - time.monotonic()))
    # Whoever loses its parent becomes a child of ours, so a few looks find everybody.
    for _ in range(100):
        left = descendants(mine)
        world.end(set(left))
        if not left:
            return
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    found = world.children_of(pid)
    for child in found:
        found += world.children_of(child)
    return found
