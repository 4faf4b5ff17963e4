//! A daemon of its own for every test: directories, configuration, the keeper as our child, and a look from outside at what is left.

use std::{
    cell::RefCell,
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use leasehold::{id::Revision, sys::clock, time::Span};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What holds workers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Cgroup,
    Group,
}

/// Each of these runs once with cgroups and once without.
macro_rules! both_ways {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            use crate::rig::{Mode, Rig};

            #[test]
            fn by_cgroup() {
                if let Some(rig) = Rig::new(Mode::Cgroup) {
                    super::$name(rig);
                }
            }

            #[test]
            fn by_group() {
                if let Some(rig) = Rig::new(Mode::Group) {
                    super::$name(rig);
                }
            }
        }
    )*};
}
pub(crate) use both_ways;

/// A wait that nothing announces, in milliseconds: between two looks at a condition.
pub(crate) fn pause(ms: u64) {
    let span = rustix::event::Timespec {
        tv_sec: (ms / 1_000) as i64,
        tv_nsec: (ms % 1_000 * 1_000_000) as i64,
    };
    let _ = rustix::event::poll(&mut [], Some(&span));
}

/// Looks until `condition` gives something; panics, with its last word, when `bound_ms` are over.
pub(crate) fn until<T>(
    what: &str,
    bound_ms: u64,
    mut condition: impl FnMut() -> Result<T, String>,
) -> T {
    let end = clock::now().after(Span::millis(bound_ms * patience()));
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) if clock::now() >= end => panic!("{what}: not within {bound_ms} ms: {why}"),
            Err(_) => pause(4),
        }
    }
}

/// `LEASEHOLD_TEST_PATIENCE` multiplies every bound, for machines that do something else beside.
pub(crate) fn patience() -> u64 {
    let asked = std::env::var("LEASEHOLD_TEST_PATIENCE").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// `until` for a plain condition.
pub(crate) fn until_true(what: &str, bound_ms: u64, mut condition: impl FnMut() -> bool) {
    until(what, bound_ms, || {
        condition().then_some(()).ok_or_else(String::new)
    });
}

/// The system's Python, which other users may execute too.
fn python() -> &'static str {
    let usual = "/usr/bin/python3";
    if Path::new(usual).exists() {
        usual
    } else {
        "python3"
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says, loudly, why a test does not test anything here.
pub(crate) fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    // Written, not printed: the harness keeps what is printed by tests that pass.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {test}: {why}");
}

pub(crate) fn send(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a pid is positive");
    // Gone already is as good.
    let _ = kill_process(pid, signal);
}

/// Does a process with this pid live (zombies do not)?
pub(crate) fn lives(pid: i32) -> bool {
    state_of(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// The state letter of a process.
pub(crate) fn state_of(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// utime and stime of some processes, in clock ticks.
pub(crate) fn ticks(pids: &[i32]) -> u64 {
    let of = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let rest = stat.rsplit_once(") ").unwrap().1.to_owned();
        let fields: Vec<u64> = rest
            .split(' ')
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        fields[11] + fields[12]
    };
    pids.iter().map(of).sum()
}

pub(crate) fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Living processes with this text in their environment.
fn carriers(cookie: &str) -> Vec<i32> {
    let needle = format!("LEASEHOLD_RUN={cookie}");
    let carries = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == needle.as_bytes()))
    };
    all_pids()
        .into_iter()
        .filter(|pid| carries(pid) && lives(*pid))
        .collect()
}

/// A loopback port that nobody has; outside the range from which the kernel gives ports to clients. Looked up, not tried: a socket
/// of ours would live on for a moment in whatever another test is starting.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 18_000 + (std::process::id() % 60) as u16 * 200;
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let taken = |port: u16| table.contains(&format!(":{port:04X} "));
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 200;
        if !taken(port) {
            return port;
        }
    }
}

/// Where the cgroup2 hierarchy is mounted.
pub(crate) fn cgroup_mount() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - cgroup2 ")?;
        let mut fields = head.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        (root == "/" && !tail.is_empty()).then(|| PathBuf::from(mount))
    })
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// One worker as `status` shows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Worker {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) generation: u64,
    pub(crate) state: String,
    pub(crate) ready: bool,
    pub(crate) restarts: u64,
    pub(crate) all: Value,
}

/// `GET /v1/status`.
#[derive(Clone, Debug)]
pub(crate) struct Status(pub Value);

impl Status {
    pub(crate) fn supervisor(&self) -> i32 {
        self.0["supervisor"]["pid"].as_i64().unwrap() as i32
    }

    pub(crate) fn fleet(&self, name: &str) -> &Value {
        let fleets = self.0["fleets"].as_array().unwrap();
        fleets
            .iter()
            .find(|fleet| fleet["name"] == name)
            .unwrap_or(&Value::Null)
    }

    pub(crate) fn workers(&self) -> Vec<Worker> {
        let fleets = self.0["fleets"].as_array().unwrap().iter();
        let workers = fleets.flat_map(|fleet| fleet["workers"].as_array().unwrap());
        workers
            .map(|w| Worker {
                id: w["id"].as_str().unwrap().to_owned(),
                pid: w["pid"].as_i64().unwrap_or(0) as i32,
                generation: w["generation"].as_u64().unwrap(),
                state: w["state"].as_str().unwrap().to_owned(),
                ready: w["ready"].as_bool().unwrap(),
                restarts: w["restarts"].as_u64().unwrap(),
                all: w.clone(),
            })
            .collect()
    }

    pub(crate) fn of(&self, fleet: &str) -> Vec<Worker> {
        let prefix = format!("{fleet}/");
        let mut all = self.workers();
        all.retain(|worker| worker.id.starts_with(&prefix));
        all
    }

    pub(crate) fn worker(&self, id: &str) -> Option<Worker> {
        self.workers().into_iter().find(|worker| worker.id == id)
    }

    /// Every fleet has as many ready workers as it should, and nothing is under way.
    pub(crate) fn settled(&self) -> bool {
        self.0["fleets"].as_array().unwrap().iter().all(|fleet| {
            fleet["state"] == "held"
                || fleet["ready"] == fleet["desired"] && fleet["rollout"].is_null()
        })
    }
}

/// Who is who in some fleets: compared before and after.
pub(crate) fn identities(workers: &[Worker]) -> Vec<(String, i32, u64)> {
    workers
        .iter()
        .map(|worker| (worker.id.clone(), worker.pid, worker.generation))
        .collect()
}

/// One test's daemon.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
    pub(crate) mode: Mode,
    /// Runs the daemon: `["setpriv", "--reuid", …]`.
    pub(crate) wrapper: Vec<String>,
    /// Workers live in another PID namespace: the pids they note mean nothing here.
    pub(crate) elsewhere: bool,
    daemon: Option<Child>,
    cookies: RefCell<Vec<String>>,
}

impl Rig {
    /// None if this machine cannot: said on stderr.
    pub(crate) fn new(mode: Mode) -> Option<Self> {
        if mode == Mode::Cgroup {
            let usable = cgroup_mount().filter(|_| is_root()).is_some_and(|mount| {
                let probe = mount.join(format!("lh-probe-{:?}", std::thread::current().id()));
                let made = fs::create_dir(&probe).is_ok();
                let _ = fs::remove_dir(&probe);
                made
            });
            if !usable {
                skip("no cgroup can be made here (not root, or no writable cgroup2 mount)");
                return None;
            }
        }
        let dir = tempfile::Builder::new()
            .prefix("lh")
            .tempdir_in("/tmp")
            .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let worker = dir.path().join("worker.py");
        fs::write(&worker, include_str!("worker.py")).unwrap();
        let notes = dir.path().join("notes");
        fs::create_dir(&notes).unwrap();
        fs::set_permissions(&notes, fs::Permissions::from_mode(0o777)).unwrap();
        Some(Self {
            dir,
            mode,
            wrapper: Vec::new(),
            elsewhere: false,
            daemon: None,
            cookies: RefCell::default(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A C program (or, with `-shared`, a library) of that name in our directory; none, said on stderr, without a compiler.
    pub(crate) fn compile(&self, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
        let (text, program) = (self.path(&format!("{name}.c")), self.path(name));
        fs::write(&text, source).unwrap();
        let mut cc = Command::new("cc");
        cc.args(flags).arg("-O1").arg("-o").arg(&program).arg(&text);
        let Ok(status) = cc.status() else {
            skip("no C compiler (cc)");
            return None;
        };
        assert!(status.success(), "{name}.c does not compile");
        Some(program)
    }

    /// What workers noted in a file of that name, line by line.
    pub(crate) fn notes(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path("notes").join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The log file of a slot.
    pub(crate) fn log(&self, worker: &str) -> PathBuf {
        self.path("log").join(format!("{worker}.log"))
    }

    /// Writes the configuration; `{worker}` is the words that start `worker.py`, `{notes}` its directory for notes, `{dir}` ours.
    pub(crate) fn configure(&self, text: &str) {
        let dir = self.dir.path().display().to_string();
        let text = text
            .replace(
                "{worker}",
                &format!("{:?}, \"-SE\", \"{dir}/worker.py\"", python()),
            )
            .replace("{notes}", &format!("{dir}/notes"))
            .replace("{dir}", &dir);
        fs::write(self.path("leasehold.toml"), format!("schema = 1\n{text}")).unwrap();
    }

    /// `leasehold run` with this rig's directories, not yet started.
    pub(crate) fn run_command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_leasehold");
        let mut command = match self.wrapper.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command
            .arg("run")
            .arg("-c")
            .arg(self.path("leasehold.toml"));
        for what in ["run", "state", "log"] {
            command.arg(format!("--{what}-dir")).arg(self.path(what));
        }
        if self.mode == Mode::Group {
            command.arg("--no-cgroup");
        }
        for variable in ["LEASEHOLD_SOCKET", "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID"] {
            command.env_remove(variable);
        }
        command
    }

    /// Starts the daemon and waits for its first status.
    pub(crate) fn start(&mut self) -> Status {
        self.spawn();
        until("the daemon answers", 10_000, || {
            if let Some(status) = self
                .daemon
                .as_mut()
                .and_then(|child| child.try_wait().unwrap())
            {
                return Err(format!("it ended: {status}: {}", self.stderr()));
            }
            self.try_status()
        })
    }

    /// Starts the daemon.
    pub(crate) fn spawn(&mut self) {
        let stderr = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("stderr"))
            .unwrap();
        let mut command = self.run_command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        self.spawn_as(command);
    }

    /// Starts the daemon as somebody else wants it: on a terminal, say.
    pub(crate) fn spawn_as(&mut self, mut command: Command) {
        assert!(self.daemon.is_none(), "one daemon a rig");
        self.daemon = Some(command.spawn().unwrap());
        until("run.json is written", 10_000, || {
            let text = fs::read_to_string(self.path("run/run.json")).unwrap_or_default();
            let run: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            let cookie = run["cookie"].as_str().ok_or("no cookie")?.to_owned();
            if self.cookies.borrow().contains(&cookie) {
                return Err("the run before".to_owned());
            }
            self.cookies.borrow_mut().push(cookie);
            Ok(())
        });
    }

    /// Starts, and waits until all are ready.
    pub(crate) fn start_settled(&mut self) -> Status {
        self.start();
        self.settle(15_000)
    }

    pub(crate) fn settle(&self, bound_ms: u64) -> Status {
        self.wait("all are ready", bound_ms, Status::settled)
    }

    /// What the daemon said so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// The pid of our child: the keeper, unless a wrapper is in between.
    pub(crate) fn keeper(&self) -> i32 {
        self.daemon.as_ref().expect("the daemon was started").id() as i32
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.keeper(), signal);
    }

    /// One request over the control socket.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(u16, String), String> {
        let text = |e: std::io::Error| e.to_string();
        let mut stream = UnixStream::connect(self.path("run/control.sock")).map_err(text)?;
        let limit = Some(std::time::Duration::from_secs(3));
        stream.set_read_timeout(limit).map_err(text)?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: leasehold\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).map_err(text)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(text)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("half an answer")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((code.ok_or("no status line")?, body.to_owned()))
    }

    pub(crate) fn try_status(&self) -> Result<Status, String> {
        let (code, body) = self.request("GET", "/v1/status", "")?;
        let value = serde_json::from_str(&body).map_err(|e| format!("{code}: {e}: {body}"))?;
        if code == 200 {
            Ok(Status(value))
        } else {
            Err(format!("{code}: {value}"))
        }
    }

    /// The status; a supervisor that is being replaced has two seconds.
    pub(crate) fn status(&self) -> Status {
        until("a status", 2_000, || self.try_status())
    }

    pub(crate) fn wait(
        &self,
        what: &str,
        bound_ms: u64,
        mut done: impl FnMut(&Status) -> bool,
    ) -> Status {
        until(what, bound_ms, || {
            let status = self.try_status()?;
            if done(&status) {
                Ok(status)
            } else {
                Err(status.0.to_string())
            }
        })
    }

    /// A verb of the command line, to its end.
    pub(crate) fn cli(&self, words: &[&str]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .args(words)
            .arg("--socket")
            .arg(self.path("run/control.sock"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A verb that must succeed.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let said = self.cli(words);
        assert_eq!(
            said.code, 0,
            "leasehold {words:?}: {}{}",
            said.out, said.err
        );
        said.out
    }

    /// Waits for the daemon's end.
    pub(crate) fn ended(&mut self, bound_ms: u64) -> ExitStatus {
        let mut child = self.daemon.take().expect("the daemon was started");
        let end = clock::now().after(Span::millis(bound_ms * patience()));
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if clock::now() >= end {
                self.daemon = Some(child);
                let status = self.try_status();
                panic!("the daemon did not end within {bound_ms} ms; status {status:?}");
            }
            pause(4);
        }
    }

    /// SIGTERM, exit code 0, nothing left.
    pub(crate) fn drain(&mut self, bound_ms: u64) {
        self.signal(Signal::TERM);
        let status = self.ended(bound_ms);
        assert_eq!(status.code(), Some(0), "{status}: {}", self.stderr());
        self.assert_nothing_left();
    }

    /// kill -9 of the keeper, seen to its end.
    pub(crate) fn kill_keeper(&mut self) {
        self.signal(Signal::KILL);
        let status = self.ended(5_000);
        assert_eq!(status.signal(), Some(9), "{status}");
    }

    /// The directory that holds this daemon's cgroups.
    pub(crate) fn cgroup(&self) -> Option<PathBuf> {
        let run = self.path("run");
        let hash = Revision::of(run.as_os_str().as_encoded_bytes()).0;
        Some(cgroup_mount()?.join(format!("leasehold-{hash:016x}")))
    }

    /// Living processes of every run of this rig.
    pub(crate) fn left(&self) -> Vec<i32> {
        self.cookies
            .borrow()
            .iter()
            .flat_map(|cookie| carriers(cookie))
            .collect()
    }

    /// Nothing carries our cookies, nobody that workers noted in `pids` lives, no cgroup is there.
    pub(crate) fn assert_nothing_left(&self) {
        let left = self.left();
        let described: Vec<String> = left.iter().map(|pid| describe(*pid)).collect();
        assert!(left.is_empty(), "left over: {described:?}");
        self.assert_noted_are_gone();
        let cgroup = self.cgroup().filter(|path| path.exists());
        assert_eq!(cgroup, None, "the cgroup was left");
    }

    pub(crate) fn noted_pids(&self) -> Vec<i32> {
        if self.elsewhere {
            return Vec::new();
        }
        self.notes("pids")
            .iter()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    pub(crate) fn assert_noted_are_gone(&self) {
        let mut alive = self.noted_pids();
        alive.retain(|pid| lives(*pid));
        let described: Vec<String> = alive.iter().map(|pid| describe(*pid)).collect();
        assert!(alive.is_empty(), "grandchildren left: {described:?}");
    }
}

fn describe(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    format!(
        "{pid} {:?} parent {:?}: {line}",
        state_of(pid),
        parent_of(pid)
    )
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.stderr();
            let from = text.len().saturating_sub(6_000);
            let from = (from..text.len())
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            eprintln!("--- the daemon's stderr ---\n{}\n---", &text[from..]);
        }
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let end = clock::now().after(Span::secs(5));
        loop {
            let mut left = self.left();
            left.extend(
                self.noted_pids()
                    .into_iter()
                    .filter(|pid| lives(*pid) && is_ours(*pid)),
            );
            if left.is_empty() || clock::now() > end {
                break;
            }
            for pid in left {
                send(pid, Signal::KILL);
            }
            pause(4);
        }
        if let Some(cgroup) = self.cgroup().filter(|path| path.exists()) {
            remove_cgroup(&cgroup);
        }
    }
}

/// A noted pid may be somebody else's by now; what workers start are these two programs.
fn is_ours(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    line.contains("worker.py") || line.starts_with("sleep\u{0}1000")
}

fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let _ = fs::write(entry.path().join("cgroup.kill"), "1");
            until_true("an old cgroup empties", 2_000, || {
                fs::remove_dir(entry.path()).is_ok() || !entry.path().exists()
            });
        }
    }
    let _ = fs::remove_dir(path);
}

/// A small file system of memory.
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    pub(crate) fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size},mode=0755");
        let done = is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(path)
                .status()
                .is_ok_and(|status| status.success());
        if !done {
            skip("no tmpfs can be mounted here");
            return None;
        }
        Some(Self {
            path: path.to_owned(),
        })
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.path)
            .status();
        assert!(status.unwrap().success());
    }

    pub(crate) fn grow(&self, size: &str) {
        self.remount(&format!("size={size}"));
    }

    pub(crate) fn make_read_only(&self) {
        self.remount("ro");
    }

    pub(crate) fn fill(&self) {
        let _ = fs::write(self.path.join("ballast"), vec![0; 1 << 20]);
    }

    pub(crate) fn empty(&self) {
        fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
