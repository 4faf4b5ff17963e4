"""Workers for the process tests. The first argument says how to behave, the others are that function's."""

import json
import os
import random
import resource
import signal
import socket
import sys
import time


def note(path, text):
    """One line at the end of a file, whole whoever else writes there."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, (text + "\n").encode())
    os.close(fd)


def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.connect(os.environ["NOTIFY_SOCKET"])
        s.send(text.encode())


def forever():
    # pause(2) would sleep on after a signal that came just before it; this byte is there to be read.
    heard, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    while True:
        os.read(heard, 64)


def on_term(what):
    def handler(*_):
        what()
        os._exit(0)

    signal.signal(signal.SIGTERM, handler)


def sleep():
    on_term(lambda: None)
    forever()


def burn(notes, cores):
    """Its part of the load, in cores, that the file `load` says for all; `cores` of one at most. Who is stuck burns as much and does no work."""
    cores, slot = float(cores), os.environ["LEASEHOLD_SLOT"]
    alive = os.path.join(notes, "alive")
    os.makedirs(alive, exist_ok=True)
    mine = os.path.join(alive, str(os.getpid()))

    def read(name):
        try:
            with open(os.path.join(notes, name)) as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    on_term(lambda: os.path.exists(mine) and os.unlink(mine))
    notify("READY=1")
    done, looked, share, stuck = 0.0, 0.0, 0.0, False
    budget = time.process_time()
    while True:
        now = time.monotonic()
        if now - looked > 0.5:
            looked, stuck = now, read("stuck") == slot
            if stuck and os.path.exists(mine):
                os.unlink(mine)
            elif not stuck:
                open(mine, "a").close()
            # Who was killed left its file behind.
            others = sum(os.path.exists(f"/proc/{pid}") for pid in os.listdir(alive))
            share = cores if stuck else min(cores, float(read("load") or 0) / max(others, 1))
            notify(f"X_LEASEHOLD_DONE={int(done * 1000)}")
        # All that this process uses counts, the looking around too; what it could not use it does not make up for.
        end = now + 0.1
        budget += share * 0.1
        while time.process_time() < budget and time.monotonic() < end:
            pass
        budget = min(budget, time.process_time())
        done += 0 if stuck else share * 0.1
        time.sleep(max(0.0, end - time.monotonic()))


def lines(batch="10", pause="0.02"):
    """Numbered lines until SIGTERM, then the last number."""
    done = []
    signal.signal(signal.SIGTERM, lambda *_: done.append(1))
    generation, n = os.environ["LEASEHOLD_GENERATION"], 0
    while not done:
        for _ in range(int(batch)):
            n += 1
            os.write(1, f"{generation} {n}\n".encode())
        time.sleep(float(pause))
    os.write(1, f"{generation} last {n}\n".encode())


def flood(count, width):
    """So many lines of so many bytes, as fast as they are taken; then it sleeps."""
    count, width = int(count), int(width)
    batch = []
    for n in range(1, count + 1):
        batch.append(f"{n:08d} ".encode().ljust(width - 1, b"x") + b"\n")
        if len(batch) == 100 or n == count:
            data = b"".join(batch)
            batch = []
            while data:
                data = data[os.write(1, data) :]
    on_term(lambda: None)
    forever()


def torn(pieces):
    """A line in pieces without its end, then its end, then last words without an end."""
    for n in range(int(pieces)):
        os.write(1, f"piece{n} ".encode())
        time.sleep(0.4)
    os.write(1, b"end\n")
    os.write(1, b"last words")
    os._exit(4)


def farewell(count):
    """Silent until SIGTERM; then so many lines on either stream, and a word without an end."""

    def words():
        for n in range(1, int(count) + 1):
            os.write(1, f"farewell {n}\n".encode())
            os.write(2, f"alas {n}\n".encode())
        os.write(1, b"gone")

    on_term(words)
    notify("READY=1")
    forever()


def serve_once():
    """One connection, and then it has done what it should."""
    with socket.socket(fileno=3) as listener:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"x")


def serve():
    """Answers every connection on the first inherited socket with our pid."""
    with socket.socket(fileno=3) as listener:
        while True:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"%d\n" % os.getpid())


def busy(share):
    """Says how busy it is, and is not."""
    while True:
        notify("READY=1\nX_LEASEHOLD_BUSY=" + share)
        time.sleep(0.2)


def crash(where):
    """Ends soon, this way or that, until the file `calm` is there."""
    slot = os.environ["LEASEHOLD_SLOT"]
    note(f"{where}/starts.{slot}", os.environ["LEASEHOLD_GENERATION"])
    time.sleep(random.uniform(0.01, 0.3))
    if os.path.exists(f"{where}/calm"):
        forever()
    if random.random() < 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def fail(where=None, code="1"):
    if where:
        note(f"{where}/starts", os.environ["LEASEHOLD_GENERATION"])
    os._exit(int(code))


def ready(delay="0", where=None):
    on_term(lambda: None)
    if where:
        note(f"{where}/ready.{os.environ['LEASEHOLD_SLOT']}", os.environ["LEASEHOLD_GENERATION"])
    time.sleep(float(delay))
    notify("READY=1\nSTATUS=here I am")
    forever()


def stubborn():
    """Knows no signal that it may ignore."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    notify("READY=1")
    forever()


def child(where, what):
    if os.fork() == 0:
        what()
        note(f"{where}/pids", str(os.getpid()))
        while True:
            time.sleep(1000)


def orphan(where, what):
    pid = os.fork()
    if pid == 0:
        child(where, what)
        os._exit(0)
    os.waitpid(pid, 0)


def late_http(port, delay):
    """Listens after a while; says yes to `/yes` and no to everything else."""
    time.sleep(float(delay))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(port)))
        listener.listen(64)
        while True:
            peer, _ = listener.accept()
            with peer:
                asked = peer.recv(4096)
                if asked:
                    word = b"200 OK" if b" /yes " in asked else b"503 No"
                    peer.sendall(b"HTTP/1.1 " + word + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def alive(until):
    """Says so, more often than its watchdog wants, until a file is there."""
    on_term(lambda: None)
    notify("READY=1")
    pause = int(os.environ["WATCHDOG_USEC"]) / 1e6 / 4
    while not os.path.exists(until):
        notify("WATCHDOG=1")
        time.sleep(pause)
    forever()


def slow_stop(where, seconds):
    """Takes so long to stop, and asks for more time all along."""
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    notify("READY=1")
    while not told:
        time.sleep(0.01)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        notify("EXTEND_TIMEOUT_USEC=400000")
        time.sleep(0.1)
    note(f"{where}/order", f"{os.environ['LEASEHOLD_FLEET']} gone")


def family(where, bareness="0"):
    """One descendant of every kind, all known by pid in a file; then it waits. Of the bare ones only the process group (1), or not
    even that (2), tells whose they are."""

    def deaf():
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def mute():
        os.setsid()
        os.closerange(0, 64)

    def bare(*before):
        def change():
            for step in before:
                step()
            note(f"{where}/pids", str(os.getpid()))
            os.execve("/bin/sleep", ["sleep", "1000"], {})

        return change

    kinds = [lambda: None, os.setsid, lambda: os.setpgid(0, 0), deaf, mute]
    if bareness != "0":
        kinds.append(bare())
    for kind in kinds:
        child(where, kind)
        orphan(where, kind)
    count = 2 * len(kinds)
    if bareness == "2":
        orphan(where, bare(os.setsid))
        count += 1
    while not os.path.exists(f"{where}/pids") or len(open(f"{where}/pids").readlines()) < count:
        time.sleep(0.005)
    notify("READY=1")
    on_term(lambda: None)
    forever()


def bomb(where, count, seconds):
    """So many children, and some that move: each forks and ends, again and again, for a bounded time."""
    until = time.monotonic() + float(seconds)
    for n in range(int(count)):
        child(where, os.setsid if n % 2 else lambda: None)
    for n in range(4):
        if os.fork() == 0:
            while time.monotonic() < until:
                if n % 2:
                    os.setsid() if os.getsid(0) != os.getpid() else None
                if os.fork():
                    os._exit(0)
            os._exit(0)
    notify("READY=1")
    forever()


def close_all():
    notify("READY=1")
    os.closerange(0, 4096)
    forever()


def freeze():
    notify("READY=1")
    os.kill(os.getpid(), signal.SIGSTOP)
    forever()


def leave_pipe(where):
    """The leader goes at once when told; a grandchild keeps its output open."""

    def talk():
        os.setsid()
        os.write(1, b"from the grandchild\n")

    orphan(where, talk)
    while not os.path.exists(f"{where}/pids"):
        time.sleep(0.005)
    notify("READY=1")
    on_term(lambda: None)
    forever()


def boot():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def published(where):
    """Ready at once; notes when it was told to go."""
    slot = os.environ["LEASEHOLD_SLOT"]
    on_term(lambda: note(f"{where}/order", f"{boot()} term {slot}"))
    notify("READY=1")
    forever()


def told(where, word, path):
    """A check or a reload: notes what it reads, and does what files in `where` say: hangs, is slow, fails, kills itself."""
    note(f"{where}/order", f"{boot()} begin-{word}")
    if os.path.exists(f"{where}/{word}-hangs"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child(where, lambda: os.setsid())
        forever()
    if os.path.exists(f"{where}/{word}-slow"):
        time.sleep(1.5)
    if os.path.exists(f"{where}/{word}-fails"):
        os._exit(7)
    with open(path) as text:
        note(f"{where}/order", f"{boot()} {word} {text.read().strip()}".strip())


def order(where):
    """Tells when it came, when it was told to go, and when it went."""
    fleet = os.environ["LEASEHOLD_FLEET"]

    def go():
        note(f"{where}/order", f"{fleet} told")
        time.sleep(0.2)
        note(f"{where}/order", f"{fleet} gone")

    on_term(go)
    note(f"{where}/order", f"{fleet} up")
    time.sleep(0.2)
    notify("READY=1")
    note(f"{where}/order", f"{fleet} ready")
    forever()


def ask(where, control):
    """When told to stop: does the daemon still say that we are ready?"""
    me = f"{os.environ['LEASEHOLD_FLEET']}/{os.environ['LEASEHOLD_SLOT']}"

    def look():
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(control)
            s.sendall(b"GET /v1/status HTTP/1.1\r\nhost: leasehold\r\nconnection: close\r\n\r\n")
            data = b""
            while piece := s.recv(65536):
                data += piece
        status = json.loads(data.split(b"\r\n\r\n", 1)[1])
        workers = [w for f in status["fleets"] for w in f["workers"]]
        mine = next(w for w in workers if w["id"] == me)
        note(f"{where}/asked", json.dumps([mine["ready"], mine["state"]]))

    on_term(look)
    forever()


def dump(path, *_):
    """Everything that a worker can see of what it was given, as JSON."""
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the directory itself
    status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    mask = os.umask(0)
    os.umask(mask)
    text = json.dumps(
        {
            "argv": sys.argv,
            "env": dict(os.environ),
            "fds": fds,
            "status": status,
            "umask": mask,
            "cwd": os.getcwd(),
            "pid": os.getpid(),
            "pgid": os.getpgid(0),
            "sid": os.getsid(0),
            "ppid": os.getppid(),
            "uid": os.getresuid(),
            "gid": os.getresgid(),
            "groups": sorted(os.getgroups()),
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "nice": os.nice(0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "oom": open("/proc/self/oom_score_adj").read().strip(),
            "cgroup": open("/proc/self/cgroup").read(),
        }
    )
    with open(path + ".new", "w") as out:
        out.write(text)
    os.rename(path + ".new", path)
    on_term(lambda: None)
    forever()


globals()[sys.argv[1]](*sys.argv[2:])
