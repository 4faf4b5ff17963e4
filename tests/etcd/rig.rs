//! A cluster of real members for one test, on loopback addresses of this process's own, and what may befall it.

use std::{
    fmt::Debug,
    fs::{self, File},
    io::Write,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use leasehold::{sys::clock, time::Span};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// `LEASEHOLD_TEST_PATIENCE` multiplies every bound, for machines that do something else beside.
pub(crate) fn patient(bound: Span) -> Span {
    let asked = std::env::var("LEASEHOLD_TEST_PATIENCE").ok();
    bound.times(asked.and_then(|n| n.parse().ok()).unwrap_or(1))
}

/// A wait that nothing announces, in milliseconds: between two looks at a condition.
pub(crate) fn pause(ms: i64) {
    let span = rustix::event::Timespec {
        tv_sec: ms / 1_000,
        tv_nsec: ms % 1_000 * 1_000_000,
    };
    let _ = rustix::event::poll(&mut [], Some(&span));
}

/// Looks until `condition` gives something; panics, with its last word, when the bound is over.
pub(crate) fn until<T, E: Debug>(
    what: &str,
    bound: Span,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let end = clock::now().after(patient(bound));
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) if clock::now() >= end => panic!("{what}: not within {bound}: {why:?}"),
            Err(_) => pause(10),
        }
    }
}

/// 127.x.y.z with our pid in it: whoever runs beside us has another one.
pub(crate) fn address() -> Ipv4Addr {
    let pid = std::process::id();
    let [_, high, middle, low] = pid.to_be_bytes();
    Ipv4Addr::new(127, 64 + high % 64, middle, low)
}

/// Below what the kernel gives to whoever connects; nobody listens there just now.
pub(crate) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
        if TcpListener::bind(SocketAddrV4::new(address(), port)).is_ok() {
            return port;
        }
    }
}

/// How the members are to be.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(crate) members: usize,
    /// Further arguments for each.
    pub(crate) args: Vec<String>,
    /// They speak TLS; the arguments say how.
    pub(crate) tls: bool,
}

/// One member's place; it may be running.
pub(crate) struct Member {
    pub(crate) args: Vec<String>,
    client: u16,
    log: PathBuf,
    pub(crate) child: Option<Child>,
}

/// The members, their directory, and their end.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    setup: Setup,
    _dir: TempDir,
}

/// Says, loudly, why a test does not test anything here.
fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    // Written, not printed: the harness keeps what is printed by tests that pass.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {test}: {why}");
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).exists())
}

/// In memory, where there is a place for that: etcd waits for the disk at each write.
fn directory() -> TempDir {
    let make = |dir: &Path| {
        tempfile::Builder::new()
            .prefix("leasehold-etcd-")
            .tempdir_in(dir)
    };
    make(Path::new("/dev/shm"))
        .or_else(|_| make(&std::env::temp_dir()))
        .expect("no place for etcd's data")
}

impl Cluster {
    /// One member, started.
    pub(crate) fn alone() -> Option<Self> {
        Self::with(Setup {
            members: 1,
            ..Setup::default()
        })
    }

    /// Three members, started.
    pub(crate) fn of_three() -> Option<Self> {
        Self::with(Setup {
            members: 3,
            ..Setup::default()
        })
    }

    /// Started. None, loudly, where there is no etcd.
    pub(crate) fn with(setup: Setup) -> Option<Self> {
        let mut cluster = Self::planned(setup)?;
        for member in 0..cluster.members.len() {
            cluster.start(member);
        }
        Some(cluster)
    }

    /// Nobody is started yet.
    pub(crate) fn planned(setup: Setup) -> Option<Self> {
        for tool in ["etcd", "etcdctl", "setpriv"] {
            if !is_there(tool) {
                skip(&format!(
                    "there is no {tool} (Debian: etcd-server, etcd-client, util-linux)"
                ));
                return None;
            }
        }
        let dir = directory();
        let ip = address();
        let places: Vec<(u16, u16)> = (0..setup.members).map(|_| (port(), port())).collect();
        let peers: Vec<String> = places
            .iter()
            .enumerate()
            .map(|(n, (_, peer))| format!("m{n}=http://{ip}:{peer}"))
            .collect();
        let scheme = if setup.tls { "https" } else { "http" };
        let member = |(n, (client, peer)): (usize, &(u16, u16))| Member {
            args: [
                format!("--name=m{n}"),
                format!("--data-dir={}", dir.path().join(format!("m{n}")).display()),
                format!("--listen-client-urls={scheme}://{ip}:{client}"),
                format!("--advertise-client-urls={scheme}://{ip}:{client}"),
                format!("--listen-peer-urls=http://{ip}:{peer}"),
                format!("--initial-advertise-peer-urls=http://{ip}:{peer}"),
                format!("--initial-cluster={}", peers.join(",")),
                "--logger=zap".to_owned(),
            ]
            .into_iter()
            // Nobody stands against a single member, so it need not wait before it leads.
            .chain((setup.members == 1).then(|| "--heartbeat-interval=20".to_owned()))
            .chain((setup.members == 1).then(|| "--election-timeout=200".to_owned()))
            .chain(setup.args.iter().cloned())
            .collect(),
            client: *client,
            log: dir.path().join(format!("m{n}.log")),
            child: None,
        };
        let members = places.iter().enumerate().map(member).collect();
        Some(Self {
            members,
            setup,
            _dir: dir,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// As the shell wants them.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let scheme = if self.setup.tls { "https" } else { "http" };
        let url = |member: &Member| format!("{scheme}://{}:{}", address(), member.client);
        self.members.iter().map(url).collect()
    }

    pub(crate) fn client_port(&self, member: usize) -> u16 {
        self.members[member].client
    }

    /// Starts it, or starts it again.
    pub(crate) fn start(&mut self, member: usize) {
        let member = &mut self.members[member];
        assert!(member.child.is_none(), "it runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&member.log)
            .unwrap();
        // It dies with the thread of its test, should that not come to its end.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd"])
            .args(&member.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd does not start");
        member.child = Some(child);
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn stop(&mut self, member: usize) {
        self.send(member, Signal::TERM);
        if let Some(mut child) = self.members[member].child.take() {
            until("etcd ends", Span::secs(20), || match child.try_wait() {
                Ok(None) => Err("it runs".to_owned()),
                _ => Ok(()),
            });
        }
    }

    /// Frozen, with all its threads, until it is thawed.
    pub(crate) fn freeze(&self, member: usize) {
        self.send(member, Signal::STOP);
        let child = self.members[member].child.as_ref().expect("it runs");
        let threads = format!("/proc/{}/task", child.id());
        let is_stopped = |thread: &Path| {
            let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        until("it is frozen", Span::secs(10), || {
            let mut all = fs::read_dir(&threads).unwrap().flatten();
            match all.find(|thread| !is_stopped(&thread.path())) {
                None => Ok(()),
                Some(thread) => Err(thread.file_name()),
            }
        });
    }

    pub(crate) fn thaw(&self, member: usize) {
        self.send(member, Signal::CONT);
    }

    fn send(&self, member: usize, signal: Signal) {
        let child = self.members[member].child.as_ref().expect("it runs");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let _ = kill_process(pid.expect("a pid is positive"), signal);
    }

    /// A root (`secret`) and a user (`right`) who may use what lies below a prefix; nobody is asked who he is yet.
    pub(crate) fn enroll(&self, user: &str, prefix: &str) {
        let account = format!("{user}:right");
        for args in [
            &["user", "add", "root:secret"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", user],
            &[
                "role",
                "grant-permission",
                user,
                "--prefix=true",
                "readwrite",
                prefix,
            ],
            &["user", "add", &account],
            &["user", "grant-role", user, user],
        ] {
            self.ctl(args).unwrap();
        }
    }

    /// What an operator does.
    pub(crate) fn ctl(&self, args: &[&str]) -> Result<String, String> {
        self.ctl_at(&self.endpoints(), args)
    }

    pub(crate) fn ctl_at(&self, endpoints: &[String], args: &[&str]) -> Result<String, String> {
        let out = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .args(["--dial-timeout=2s", "--command-timeout=5s"])
            .args(args)
            .output()
            .map_err(|error| error.to_string())?;
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    /// The member that says that it leads.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |member: &usize| {
            let endpoint = &self.endpoints()[*member..=*member];
            let status = self.ctl_at(endpoint, &["endpoint", "status", "--write-out=json"]);
            let status: serde_json::Value = serde_json::from_str(&status.ok()?).ok()?;
            let status = &status[0]["Status"];
            Some(status["leader"] == status["header"]["member_id"] && status["leader"] != 0)
        };
        let running = |member: &usize| self.members[*member].child.is_some();
        (0..self.members.len())
            .filter(running)
            .find(|member| leads(member) == Some(true))
    }

    /// What a member said last.
    fn last_words(&self, member: usize) -> String {
        let log = fs::read_to_string(&self.members[member].log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for n in 0..self.members.len() {
            if std::thread::panicking() {
                eprintln!("-- member {n} said last:\n{}", self.last_words(n));
            }
            self.kill(n);
        }
    }
}
