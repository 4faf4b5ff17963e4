//! A shop whose stock one worker sells and whose payments one worker makes, on two nodes that share an etcd and the stores.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    etcd::Cluster,
    rig::{Mode, Rig, cgroup_mount, is_root, skip, until},
};

/// The Python that runs the examples here, if it has what they need: Debian's smallest one has no sqlite3.
pub(crate) fn python() -> Option<&'static str> {
    let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let mut command = Command::new(python);
        command.args(["-c", "import ctypes, http.client, json, mmap, sqlite3"]);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    });
    if found.is_none() {
        skip("there is no python3 with sqlite3 (Debian: libpython3-stdlib)");
    }
    found
}

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// In memory, where there is a place for that.
pub(crate) fn directory() -> TempDir {
    let make = |place: &Path| {
        let mut builder = tempfile::Builder::new();
        builder.prefix("lh-examples-").tempdir_in(place)
    };
    let found = make(Path::new("/dev/shm")).or_else(|_| make(Path::new("/tmp")));
    found.expect("no place for the stores")
}

/// Who has a fleet's lock, and runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) node: usize,
    pub(crate) fence: u64,
    pub(crate) pid: i32,
}

/// What a worker wrote into its record.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) node: String,
    pub(crate) run: String,
    pub(crate) fence: u64,
    pub(crate) at: u64,
    pub(crate) text: String,
}

pub(crate) struct Shop {
    pub(crate) nodes: Vec<Rig>,
    _etcd: Cluster,
    python: &'static str,
    dir: TempDir,
}

impl Shop {
    /// Stores, one member of etcd, and two nodes: the first has both locks, the second waits for them.
    pub(crate) fn open(units: u32) -> Option<Self> {
        let python = python()?;
        let etcd = Cluster::alone()?;
        let mut shop = Self {
            nodes: Vec::new(),
            _etcd: etcd,
            python,
            dir: directory(),
        };
        shop.ok("sale.py", &["shop.db", "--open", &units.to_string()]);
        shop.ok("payments.py", &["queue.db", "bank.db", "--open"]);
        for node in ["n0", "n1"] {
            let rig = Rig::new(surest()).expect("this mode was looked for");
            rig.configure(&shop.configuration(node));
            shop.nodes.push(rig);
        }
        shop.nodes[0].start();
        for fleet in ["sale", "payments"] {
            assert_eq!(shop.holder(fleet).node, 0);
        }
        shop.nodes[1].start();
        for fleet in ["sale", "payments"] {
            shop.stands_by(1, fleet);
        }
        Some(shop)
    }

    fn configuration(&self, node: &str) -> String {
        let (dir, python) = (self.dir.path().display(), self.python);
        let fencing = examples().join("fencing");
        let fencing = fencing.display();
        let times = r#"grace = "500ms", kill_margin = "500ms""#;
        format!(
            r#"
            [node]
            name = "{node}"
            [etcd]
            endpoints = {:?}
            lease_ttl = "5s"
            [defaults]
            cwd = "{dir}"
            ready = "notify"
            stop.timeout = "3s"
            restart = {{ backoff = "1ms..5ms", burst = 100000 }}
            [fleet.sale]
            command = ["{python}", "{fencing}/sale.py", "shop.db", "--record", "sale.record"]
            singleton = {{ scope = "cluster", flock = "{{dir}}/sale.lock", {times} }}
            [fleet.payments]
            command = ["{python}", "{fencing}/payments.py", "queue.db", "bank.db", "--record", "payments.record"]
            singleton = {{ scope = "cluster", flock = "{{dir}}/payments.lock", {times} }}
            "#,
            self._etcd.endpoints(),
        )
    }

    /// One of the examples, run by hand, beside the stores.
    pub(crate) fn ok(&self, script: &str, words: &[&str]) -> String {
        self.python(&examples().join("fencing").join(script), words)
    }

    fn python(&self, script: &Path, words: &[&str]) -> String {
        let mut command = Command::new(self.python);
        command.arg(script).args(words);
        said(command.current_dir(self.dir.path()))
    }

    /// Some lines of Python that may import the examples.
    pub(crate) fn lines(&self, lines: &str) -> String {
        let mut command = Command::new(self.python);
        command.args(["-B", "-c", lines]);
        command.env("PYTHONPATH", examples().join("fencing"));
        said(command.current_dir(self.dir.path()))
    }

    /// The numbers of the one row that a query gives; it is not the examples' own arithmetic.
    pub(crate) fn query(&self, store: &str, query: &str) -> Vec<i64> {
        let lines = format!(
            "import json, sqlite3; print(json.dumps(sqlite3.connect({store:?}).execute({query:?}).fetchone()))"
        );
        serde_json::from_str(&self.lines(&lines)).unwrap()
    }

    pub(crate) fn holder(&self, fleet: &str) -> Holder {
        until("somebody has it", 20_000, || {
            let holders = (0..self.nodes.len()).filter_map(|node| self.holder_at(node, fleet));
            let holders: Vec<Holder> = holders.collect();
            match &holders[..] {
                [one] => Ok(one.clone()),
                _ => Err(format!("{holders:?}")),
            }
        })
    }

    /// Nobody is asked who was frozen.
    pub(crate) fn holder_at(&self, node: usize, fleet: &str) -> Option<Holder> {
        let status = self.nodes[node].try_status().ok()?;
        let gate = &status.fleet(fleet)["gate"];
        let workers = status.of(fleet);
        let worker = workers.iter().find(|worker| worker.ready)?;
        (gate["state"] == "open").then(|| Holder {
            node,
            fence: gate["fence"].as_u64().unwrap(),
            pid: worker.pid,
        })
    }

    pub(crate) fn stands_by(&self, node: usize, fleet: &str) {
        self.nodes[node].wait("it stands by", 20_000, |status| {
            let holder: &Value = &status.fleet(fleet)["gate"]["holder"];
            holder.as_str().is_some_and(|why| why.contains("held by"))
        });
    }

    /// In the order in which they were written.
    pub(crate) fn record(&self, fleet: &str) -> Vec<Word> {
        let path = self.dir.path().join(format!("{fleet}.record"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(Word::of).collect()
    }

    /// One after the other, with fences that do not fall.
    pub(crate) fn nobody_overlapped(&self, fleet: &str) {
        let mut runs: Vec<(Word, u64)> = Vec::new();
        for word in self.record(fleet) {
            match runs.iter_mut().find(|(first, _)| first.run == word.run) {
                Some((_, last)) => *last = word.at,
                None => runs.push((word.clone(), word.at)),
            }
        }
        for pair in runs.windows(2) {
            let [(one, last), (next, _)] = pair else {
                unreachable!("windows of two")
            };
            assert!(*last < next.at, "{one:?} until {last}, and {next:?}");
            assert!(one.fence <= next.fence, "{one:?}, then {next:?}");
            assert!(one.fence < next.fence || one.node == next.node);
        }
    }
}

impl Word {
    fn of(line: &str) -> Self {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        let [node, run, _, fence, at, text] = words[..] else {
            panic!("half a line: {line:?}");
        };
        Self {
            node: node.to_owned(),
            run: run.to_owned(),
            fence: fence.parse().unwrap(),
            at: at.parse().unwrap(),
            text: text.to_owned(),
        }
    }
}

/// What holds workers together best here.
fn surest() -> Mode {
    if is_root() && cgroup_mount().is_some() {
        Mode::Cgroup
    } else {
        Mode::Group
    }
}

fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
