//! What is known from outside: the lines that workers wrote, and who of them lives. It asks no leasehold.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use leasehold::time::{Moment, Span};

use crate::rig::{lives, pause};

/// One generation of a worker, as its lines tell it.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) node: String,
    pub(crate) fence: u64,
    pub(crate) leader: i32,
    pub(crate) first: Moment,
    pub(crate) last: Moment,
    /// The longest time between two lines.
    pub(crate) silence: Span,
    /// It, and what it forked.
    voices: BTreeSet<i32>,
}

/// From one run to the next.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) from: String,
    pub(crate) to: String,
    /// Nobody ran for so long.
    pub(crate) gap: Span,
}

#[derive(Default)]
struct Book {
    runs: Vec<Run>,
    /// Two nodes that had somebody at once, as /proc shows it.
    met: Vec<String>,
}

pub(crate) struct Oracle {
    path: PathBuf,
    book: Arc<Mutex<Book>>,
    over: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Oracle {
    pub(crate) fn new(path: PathBuf) -> Self {
        File::create(&path).unwrap();
        let book: Arc<Mutex<Book>> = Arc::default();
        let over = Arc::new(AtomicBool::new(false));
        let (ours, end, from) = (Arc::clone(&book), Arc::clone(&over), path.clone());
        let reader = thread::spawn(move || {
            let mut file = File::open(from).unwrap();
            let mut rest = String::new();
            while !end.load(Ordering::SeqCst) {
                file.read_to_string(&mut rest).unwrap();
                let whole = rest.rfind('\n').map_or(0, |at| at + 1);
                let mut book = ours.lock().unwrap();
                for line in rest.drain(..whole).collect::<String>().lines() {
                    book.heard(line);
                }
                book.look();
                drop(book);
                pause(3);
            }
        });
        Self {
            path,
            book,
            over,
            reader: Some(reader),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All runs so far, by their beginning.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs = self.book.lock().unwrap().runs.clone();
        runs.sort_by_key(|run| run.first);
        runs
    }

    /// Every two at once, and every fence that fell.
    pub(crate) fn faults(&self) -> Vec<String> {
        let runs = self.runs();
        let mut faults = self.book.lock().unwrap().met.clone();
        for (at, one) in runs.iter().enumerate() {
            for other in &runs[at + 1..] {
                if other.first <= one.last {
                    let both = other.first.until(one.last);
                    faults.push(format!(
                        "{both} of both {} and {}",
                        one.name(),
                        other.name()
                    ));
                }
                let same = one.node == other.node;
                if other.fence < one.fence || (other.fence == one.fence && !same) {
                    faults.push(format!(
                        "the fence of {} after {}",
                        other.name(),
                        one.name()
                    ));
                }
            }
        }
        faults
    }

    pub(crate) fn changes(&self) -> Vec<Change> {
        let runs = self.runs();
        let change = |pair: &[Run]| Change {
            from: pair[0].name(),
            to: pair[1].name(),
            gap: pair[0].last.until(pair[1].first),
        };
        runs.windows(2).map(change).collect()
    }

    /// For when a test fails.
    pub(crate) fn story(&self) -> String {
        let runs = self.runs();
        let line = |run: &Run| {
            format!(
                "{} from {} to {}, silent for {} at most\n",
                run.name(),
                Moment(0).until(run.first),
                Moment(0).until(run.last),
                run.silence
            )
        };
        runs.iter().map(line).collect()
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

impl Run {
    pub(crate) fn name(&self) -> String {
        format!(
            "{} with fence {} (pid {})",
            self.node, self.fence, self.leader
        )
    }

    fn has_somebody(&self) -> bool {
        self.voices.iter().any(|pid| lives(*pid))
    }
}

impl Book {
    fn heard(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [node, fence, leader, pid, at] = words[..] else {
            panic!("half a line: {line:?}");
        };
        let (leader, pid, at) = (
            leader.parse().unwrap(),
            pid.parse().unwrap(),
            Moment(at.parse().unwrap()),
        );
        let known = self.runs.iter_mut();
        let mut known = known.filter(|run| run.node == node && run.leader == leader);
        if let Some(run) = known.next() {
            // Two voices of one run may come in another order.
            run.silence = run.silence.max(run.last.until(at));
            run.last = run.last.max(at);
            run.voices.insert(pid);
            return;
        }
        self.runs.push(Run {
            node: node.to_owned(),
            fence: fence.parse().unwrap(),
            leader,
            first: at,
            last: at,
            silence: Span::ZERO,
            voices: BTreeSet::from([pid]),
        });
    }

    /// Somebody who writes nothing, since he is stopped, is there all the same.
    fn look(&mut self) {
        let living: Vec<&Run> = self.runs.iter().filter(|run| run.has_somebody()).collect();
        for (at, one) in living.iter().enumerate() {
            for other in &living[at + 1..] {
                // The first was seen before the other, and is seen after it.
                if one.node != other.node && other.has_somebody() && one.has_somebody() {
                    let fault = format!("{} lives beside {}", one.name(), other.name());
                    if !self.met.contains(&fault) {
                        self.met.push(fault);
                    }
                    return;
                }
            }
        }
    }
}
