//! The terminal. Written to by a thread of its own through a bounded queue: a slow terminal loses lines, which are counted, and never
//! holds anybody up.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
};

use crate::{config::units::count, logs::Line};

/// Our own lines waiting to be printed at most; counted, because a bounded channel would take the memory for all of them at once.
const OURS_MAX: usize = 65_536;
/// Workers' lines likewise: their files have them anyway, ours are nowhere else.
const THEIRS_MAX: usize = 1_024;

enum Text {
    /// One of ours, to stderr.
    Ours(String),
    /// A worker's, to stdout.
    Theirs(Line),
    /// Everything before this is out.
    Flush(mpsc::Sender<()>),
}

/// A handle to the console thread.
#[derive(Clone)]
pub(super) struct Console {
    queue: Sender<Text>,
    lost: Arc<AtomicU64>,
    ours: Arc<AtomicUsize>,
    theirs: Arc<AtomicUsize>,
}

impl Console {
    pub(super) fn start() -> io::Result<Self> {
        let (queue, texts) = mpsc::channel();
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        let (ours, theirs) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (our_own, printed) = (Arc::clone(&ours), Arc::clone(&theirs));
        std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || {
                let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                for text in texts {
                    match text {
                        Text::Ours(line) => {
                            our_own.fetch_sub(1, Ordering::Relaxed);
                            print_ours(&line, counter.swap(0, Ordering::Relaxed));
                        }
                        Text::Theirs(line) => {
                            printed.fetch_sub(1, Ordering::Relaxed);
                            print_theirs(&line, colour);
                        }
                        Text::Flush(done) => {
                            let _ = io::stdout().flush();
                            let _ = done.send(());
                        }
                    }
                }
            })?;
        Ok(Self {
            queue,
            lost,
            ours,
            theirs,
        })
    }

    /// One of our own lines.
    pub(super) fn say(&self, line: String) {
        self.push(&self.ours, OURS_MAX, Text::Ours(line));
    }

    /// A worker's lines.
    pub(super) fn echo(&self, line: Line) {
        self.push(&self.theirs, THEIRS_MAX, Text::Theirs(line));
    }

    /// Waits until everything so far is printed, but not long: the terminal may be stuck.
    pub(super) fn flush(&self) {
        let (done, wait) = mpsc::channel();
        let _ = self.queue.send(Text::Flush(done));
        let _ = wait.recv_timeout(std::time::Duration::from_millis(500));
    }

    fn push(&self, waiting: &AtomicUsize, most: usize, text: Text) {
        if waiting.fetch_add(1, Ordering::Relaxed) < most && self.queue.send(text).is_ok() {
            return;
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

fn print_ours(line: &str, lost: u64) {
    let mut out = io::stderr().lock();
    if lost > 0 {
        let _ = writeln!(
            out,
            "leasehold: {} of output dropped here, which nobody read in time; the log files have what workers wrote",
            count(lost, "piece")
        );
    }
    let _ = writeln!(out, "{line}");
}

fn print_theirs(line: &Line, colour: bool) {
    let name = format!(
        "{}{}",
        line.source.worker,
        if line.source.stderr { "!" } else { "" }
    );
    let shade = 31
        + name
            .bytes()
            .fold(0_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte))
            % 6;
    let mut text = Vec::with_capacity(line.bytes.len() + 64);
    for piece in line.bytes.split_inclusive(|byte| *byte == b'\n') {
        if colour {
            text.extend_from_slice(format!("\x1b[{shade}m{name} |\x1b[0m ").as_bytes());
        } else {
            text.extend_from_slice(format!("{name} | ").as_bytes());
        }
        text.extend_from_slice(piece.strip_suffix(b"\n").unwrap_or(piece));
        text.push(b'\n');
    }
    let _ = io::stdout().lock().write_all(&text);
}
