"""The two that are measured, the C baseline and leasehold: how each is built, started, asked and stopped."""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import world
from world import BenchError

HERE = Path(__file__).resolve().parent
MIB = 1024 * 1024
ROTATE_BYTES = 50 * MIB
HEALTHY_S = 1.0  # a worker that was up for longer is restarted at once when it crashes
STOP_PATIENCE_S = 60


@dataclass(frozen=True)
class Fleet:
    """What to run: how many workers with which arguments, under which name and lock; seconds of grace before SIGKILL; does it follow the load?"""

    workers: int
    arguments: tuple[str, ...]
    name: str = "bench"
    grace_s: int = 10
    lock: Path | None = None
    follows: bool = False


class Workspace:
    """A temporary directory with the programs to run, and the socket that workers report to."""

    def __init__(self, parent: str | None):
        self.directory = Path(tempfile.mkdtemp(prefix="leasehold-bench-", dir=parent)).resolve()
        self.reports = world.Reports(self.directory / "reports")
        self.started = 0
        self.memory = tempfile.mkdtemp(prefix="leasehold-bench-", dir="/dev/shm") if Path("/dev/shm").is_dir() else None

    def build(self) -> None:
        """Compiles the C programs; the worker without shared libraries where the system can do that."""
        own_entry = ("-Wl,-e,first_instruction",) if platform.machine() == "x86_64" else ()
        self.worker = self._compile("worker", "-static", *own_entry) or self._compile("worker")
        self.baseline = self._compile("baseline")
        self.leased = self._compile("leased")
        if None in (self.worker, self.baseline, self.leased):
            raise BenchError("the C programs do not compile")

    def _compile(self, name: str, *flags: str) -> Path | None:
        program = self.directory / name
        command = ["cc", "-O2", "-Wall", "-std=gnu11", *flags, "-o", str(program), str(HERE / f"{name}.c")]
        return program if subprocess.run(command, check=False).returncode == 0 else None

    def adopt(self, binary: Path) -> Path:
        """Copies a program here, so that a build meanwhile does not change what is measured."""
        return Path(shutil.copy2(binary, self.directory / "leasehold"))

    def new_directory(self, name: str) -> Path:
        self.started += 1
        directory = self.directory / f"{name}-{self.started}"
        directory.mkdir()
        return directory

    def new_lock(self) -> Path:
        """An empty file to lock; in memory, as /run/lock is where a distribution sets that up."""
        self.started += 1
        lock = Path(self.memory or self.directory) / f"lock-{self.started}"
        lock.touch()
        return lock

    def environment(self) -> dict[str, str]:
        return {**os.environ, "BENCH_SOCKET": str(self.reports.path)}

    def processes(self) -> set[int]:
        """Every living process that runs one of our programs, whoever its parent is."""
        return set(world.processes_of(self.directory))

    def workers(self) -> set[int]:
        """Those of them that run the worker."""
        return {pid for pid, path in world.processes_of(self.directory).items() if path == str(self.worker)}

    def close(self) -> None:
        world.end(self.processes())
        self.reports.close()
        for directory in filter(None, (self.directory, self.memory)):
            shutil.rmtree(directory, ignore_errors=True)


class Instance:
    """A running baseline or leasehold. Leaving the `with` block ends whatever is still there."""

    def __init__(self, workspace: Workspace, directory: Path, command: list[str]):
        self.workspace = workspace
        self.directory = directory
        self.output = directory / "output"
        self.control = directory / "run" / "control.sock"
        self.command = command
        self.gone = False
        workspace.reports.forget()
        self.started_ns = world.now_ns()
        self.pid = world.spawn(command, self.output, workspace.environment())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._end_by_force()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def own_pids(self) -> list[int]:
        """The process we started and, of its children, those that are not workers (the supervisor)."""
        workers = self.workspace.workers()
        return [self.pid, *(pid for pid in world.children_of(self.pid) if pid not in workers)]

    def supervisor_pid(self) -> int:
        """leasehold only: the keeper's child that decides."""
        for pid in self.own_pids()[1:]:
            if b"supervisor" in world.command_line(pid):
                return pid
        raise BenchError("the keeper has no supervisor")

    def wait_for_workers(self, count: int, timeout_s: float = 60) -> None:
        """Until so many workers have reported."""
        reports = self.workspace.reports
        try:
            reports.read_until(lambda: len(reports.starts) >= count, timeout_s, f"{count} workers up")
        except BenchError as error:
            raise BenchError(f"{error}; it said:\n{self.last_words()}") from None

    def last_words(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        with contextlib.suppress(OSError):
            return self.output.read_text(errors="replace")[-2000:] or "(nothing)"
        return "(nothing)"

    def log_files(self, fleet: str = "bench", slot: int = 0) -> list[Path]:
        """A worker's log, oldest part first: ordered by the number of the first line, whatever the files are called."""
        files = (self.directory / "log" / fleet).glob(f"{slot}.log*")
        return sorted((file for file in files if file.stat().st_size > 0), key=first_number)

    def stop(self) -> int:
        """SIGTERM; returns the ns until the started process, and so all it waits for, was gone."""
        begin_ns = world.now_ns()
        os.kill(self.pid, signal.SIGTERM)
        code = world.wait_for_exit(self.pid, STOP_PATIENCE_S)
        took_ns = world.now_ns() - begin_ns
        if code is None:
            raise BenchError(f"not stopped within {STOP_PATIENCE_S} s; it said:\n{self.last_words()}")
        self.gone = True
        if code != 0:
            raise BenchError(f"stopped with exit code {code}; it said:\n{self.last_words()}")
        return took_ns

    def kill(self, signal_number: int, pid: int | None = None) -> None:
        """A signal to the started process, or to the one it waits for, and the end of the started one, however it comes."""
        os.kill(pid or self.pid, signal_number)
        self.gone = world.wait_for_exit(self.pid, STOP_PATIENCE_S) is not None

    def _end_by_force(self) -> None:
        """Two polite requests, then SIGKILL for everything, with the cgroups that only a dead keeper leaves behind."""
        for _ in range(2):
            if not self.gone:
                try:
                    os.kill(self.pid, signal.SIGTERM)
                    self.gone = world.wait_for_exit(self.pid, 15) is not None
                except ProcessLookupError:  # reaped when another instance ended everything by force
                    self.gone = True
        left = self.workspace.processes() | (set() if self.gone else set(self.own_pids()))
        cgroups = set().union(*(own_cgroups(pid) for pid in left))
        world.end(left)
        world.wait_until(lambda: not self.workspace.processes(), 10, "SIGKILL of what was left")
        world.reap_orphans()
        remove_cgroups(cgroups)


def first_number(log: Path) -> int:
    """The number of a log file's first line; -1 where there is none (the verification will say more)."""
    with log.open("rb") as file:
        digits = file.read(12)
    return int(digits) if digits.isdigit() else -1


def own_cgroups(pid: int) -> set[Path]:
    """The `leasehold-HASH` directory at the root of cgroup2 that a process is in, where root had no delegation."""
    with contextlib.suppress(OSError, StopIteration):
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        root = next(line.split()[4] for line in mounts if " - cgroup2 " in line)
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        top = next(line for line in lines if line.startswith("0::/leasehold-")).split("/")[1]
        return {Path(root) / top}
    return set()


def remove_cgroups(cgroups: set[Path]) -> None:
    """Those directories with all below them, as far as nobody is in them."""
    for cgroup in cgroups:
        for directory in [*sorted(cgroup.rglob("*/"), reverse=True), cgroup]:
            with contextlib.suppress(OSError):
                directory.rmdir()


def flock_program() -> str:
    """The path of flock(1)."""
    program = shutil.which("flock")
    if program is None:
        raise BenchError("no flock(1) on this machine; it is in util-linux")
    return program


class Baseline:
    """The floor: the C program, which keeps processes up and does nothing else."""

    name = "baseline"

    def __init__(self, workspace: Workspace):
        self.workspace = workspace

    def start(self, fleet: Fleet) -> Instance:
        """N workers that inherit its stdout."""
        return self._run(self.workspace.new_directory(self.name), ["keep", str(fleet.workers)], fleet)

    def start_captured(self, fleet: Fleet) -> Instance:
        """One worker whose stdout is copied to rotating files."""
        directory = self.workspace.new_directory(self.name)
        log = directory / "log" / "bench" / "0.log"
        log.parent.mkdir(parents=True)
        return self._run(directory, ["copy", str(log), str(ROTATE_BYTES)], fleet)

    def _run(self, directory: Path, mode: list[str], fleet: Fleet) -> Instance:
        command = [str(self.workspace.baseline), *mode, str(self.workspace.worker), *fleet.arguments]
        return Instance(self.workspace, directory, command)

    def start_locked(self, lock: Path, *flags: str) -> Instance:
        """flock(1) with a worker under that lock; `--no-fork`: the worker takes flock's place."""
        words = [*flags, str(lock), str(self.workspace.worker), "-i", "bench/0", "pause"]
        return Instance(self.workspace, self.workspace.new_directory("flock"), [flock_program(), *words])

    def lock_command(self, lock: Path) -> list[str]:
        """The least that a program can cost under a lock that is free."""
        return [flock_program(), str(lock), str(self.workspace.worker), "exit"]

    def status_command(self, _instance: Instance) -> list[str]:
        """The floor of any command: a static program that exits at once."""
        return [str(self.workspace.worker), "exit"]


class Leasehold:
    """`leasehold run` in the foreground, with directories, socket and configuration of its own."""

    name = "leasehold"

    def __init__(self, workspace: Workspace, binary: Path):
        self.workspace = workspace
        self.binary = workspace.adopt(binary)

    def start(self, *fleets: Fleet, port: int | None = None) -> Instance:
        """Any number of fleets; health on a TCP port too where one is given."""
        directory = self.workspace.new_directory(self.name)
        configuration = directory / "leasehold.toml"
        configuration.write_text(self._configuration(fleets, port))
        command = [str(self.binary), "run", "-c", str(configuration), "--quiet"]
        for kind in ("run", "state", "log"):
            (directory / kind).mkdir(mode=0o700)
            command += [f"--{kind}-dir", str(directory / kind)]
        return Instance(self.workspace, directory, command)

    start_captured = start  # leasehold captures every worker's output

    def _configuration(self, fleets: tuple[Fleet, ...], port: int | None) -> str:
        """TOML without any limit that would slow a restart down: the kills of the bench are not a crash loop."""
        text = 'schema = 1\n[node]\nrestart_rate = "100000/s"\nrestart_burst = 100000\n'
        if port is not None:
            text += f'[http]\nlisten = ["127.0.0.1:{port}"]\n'
        for fleet in fleets:
            command = ", ".join(f'"{word}"' for word in (str(self.workspace.worker), *fleet.arguments))
            text += f"""
[fleet.{fleet.name}]
command = [{command}]
{"" if fleet.follows else f"workers = {fleet.workers}"}
env = {{ BENCH_SOCKET = "{self.workspace.reports.path}" }}
restart = {{ policy = "always", burst = 100000, window = "1s", healthy = "{HEALTHY_S:g}s" }}
stop = {{ signal = "SIGTERM", timeout = "{fleet.grace_s}s" }}
log = {{ rotate_size = "{ROTATE_BYTES // MIB}MiB", max_size = "4GiB" }}
"""
            if fleet.follows:
                text += f"scale = {{ min = {fleet.workers}, max = {fleet.workers} }}\n"
            if fleet.lock is not None:
                text += f'singleton = {{ scope = "node", flock = "{fleet.lock}" }}\n'
        return text

    def status_command(self, instance: Instance) -> list[str]:
        return [str(self.binary), "status", "--json", "--socket", str(instance.control)]

    def lock_command(self, name: str) -> list[str]:
        """One command under a lock of that name."""
        return [str(self.binary), "lock", name, "--", str(self.workspace.worker), "exit"]

    def lock_files(self, name: str) -> list[Path]:
        """What such a command leaves: lock files are never removed."""
        command = [str(self.binary), "lock", "--print-path", name]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return [Path(line) for line in result.stdout.splitlines()]

    def version(self) -> str:
        """What `--version` prints."""
        result = subprocess.run([str(self.binary), "--version"], capture_output=True, text=True, check=False)
        return result.stdout.strip() or "leasehold, version unknown"
