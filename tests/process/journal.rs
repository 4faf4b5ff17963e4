//! Output to systemd's journal: a socket of ours in journald's place that reads, reads nothing, goes away and comes back.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{IoSliceMut, Read, Seek},
    mem::MaybeUninit,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::Signal,
};

use crate::rig::{Mode, Rig, pause, send, ticks, until, until_true};

/// One entry as it came.
#[derive(Clone, Debug)]
struct Entry {
    fields: BTreeMap<String, Vec<u8>>,
    by_file: bool,
}

impl Entry {
    fn text(&self, field: &str) -> String {
        let value = self.fields.get(field).cloned().unwrap_or_default();
        String::from_utf8(value).unwrap_or_else(|_| format!("{field} is not text"))
    }

    fn message(&self) -> String {
        self.text("MESSAGE")
    }
}

/// The protocol as journald reads it: `NAME=value`, or `NAME`, a length of eight bytes, and as many bytes.
fn parse(mut bytes: &[u8], by_file: bool) -> Entry {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let line = &bytes[..end];
        bytes = &bytes[end + 1..];
        let (name, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => (&line[..at], line[at + 1..].to_vec()),
            None => {
                let (length, rest) = bytes.split_at(8);
                let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
                assert_eq!(rest[length], b'\n', "a value without its end");
                bytes = &rest[length + 1..];
                (line, rest[..length].to_vec())
            }
        };
        let name = String::from_utf8(name.to_vec()).unwrap();
        assert!(fields.insert(name, value).is_none(), "a field twice");
    }
    Entry { fields, by_file }
}

/// In journald's place.
struct Journald {
    path: PathBuf,
    entries: Arc<Mutex<Vec<Entry>>>,
    reads: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Journald {
    /// For this rig's daemon, which is told where it is.
    fn of(rig: &mut Rig) -> Self {
        let path = rig.path("journal");
        rig.wrapper = vec![
            "env".to_owned(),
            format!("LEASEHOLD_JOURNAL_SOCKET={}", path.display()),
        ];
        let mut journald = Self {
            path,
            entries: Arc::default(),
            reads: Arc::new(AtomicBool::new(true)),
            ends: Arc::default(),
            thread: None,
        };
        journald.come_back();
        journald
    }

    fn come_back(&mut self) {
        let socket = UnixDatagram::bind(&self.path).unwrap();
        self.ends = Arc::default();
        let (entries, reads, ends) = (
            Arc::clone(&self.entries),
            Arc::clone(&self.reads),
            Arc::clone(&self.ends),
        );
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: 10_000_000,
        };
        self.thread = Some(std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(&socket, PollFlags::IN)];
                // A deaf one waits for its time alone.
                let deaf = !reads.load(Ordering::Relaxed);
                let fds: &mut [PollFd<'_>] = if deaf { &mut [] } else { &mut fds };
                if poll(fds, Some(&limit)).is_ok_and(|n| n > 0) {
                    entries.lock().unwrap().push(receive(&socket));
                }
            }
        }));
    }

    /// Gone, with what it had not read yet: that is lost whoever sent it.
    fn go_away(&mut self) {
        fs::remove_file(&self.path).unwrap();
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }

    fn read(&self, reads: bool) {
        self.reads.store(reads, Ordering::Relaxed);
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }

    /// The entries of a worker.
    fn of_worker(&self, id: &str) -> Vec<Entry> {
        let mut entries = self.entries();
        entries.retain(|entry| entry.text("SYSLOG_IDENTIFIER") == id);
        entries
    }

    fn messages(&self, id: &str) -> Vec<String> {
        self.of_worker(id).iter().map(Entry::message).collect()
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

fn receive(socket: &UnixDatagram) -> Entry {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 300_000];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let came = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        flags,
    );
    bytes.truncate(came.unwrap().bytes);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = message {
            assert!(bytes.is_empty(), "an entry and a file");
            let mut file = File::from(rights.next().unwrap());
            let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
            assert!(seals.contains(rustix::fs::SealFlags::WRITE), "{seals:?}");
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            return parse(&bytes, true);
        }
    }
    parse(&bytes, false)
}

fn group() -> Rig {
    Rig::new(Mode::Group).expect("everybody can hold workers together by group")
}

/// The number that a line of `flood` begins with, the line being whole.
fn number(line: &str, width: usize) -> usize {
    assert!(
        line.len() == width - 1 && line.ends_with('x'),
        "torn: {:?}",
        &line[..line.len().min(60)]
    );
    line[..8].parse().unwrap()
}

#[test]
fn lines_arrive_in_order_with_their_fields() {
    let mut rig = group();
    let journald = Journald::of(&mut rig);
    rig.configure(
        r#"
        [defaults]
        log = { rotate_size = "1MiB", max_size = "8MiB" }
        [fleet.web]
        command = ["/bin/sh", "-c", "echo one; echo; printf 'a\\001b\\n'; echo two; exec sleep 1000"]
        workers = 2
        log = { sink = "journal" }
        [fleet.apart]
        command = ["/bin/sh", "-c", "echo out; echo err >&2; exec sleep 1000"]
        log = { sink = "journal", stderr = "separate" }
        [fleet.many]
        command = [{worker}, "flood", "20000", "100"]
        log = { sink = "journal" }
        [fleet.file]
        command = ["/bin/sh", "-c", "echo in a file; exec sleep 1000"]
    "#,
    );
    let before = rig.start_settled();
    until_true("all of them", 20_000, || journald.entries().len() >= 20_010);
    for slot in ["0", "1"] {
        let id = format!("web/{slot}");
        assert_eq!(journald.messages(&id), ["one", "", "a\u{1}b", "two"]);
        let entry = journald.of_worker(&id).pop().unwrap();
        for (field, value) in [
            ("PRIORITY", "6"),
            ("LEASEHOLD_FLEET", "web"),
            ("LEASEHOLD_SLOT", slot),
            ("LEASEHOLD_GENERATION", "1"),
        ] {
            assert_eq!(entry.text(field), value, "{field} of {entry:?}");
        }
    }
    let last = journald.of_worker("many/0").pop().unwrap();
    let pid = before.worker("many/0").unwrap().pid;
    assert_eq!(last.text("OBJECT_PID"), pid.to_string());
    let numbers: Vec<usize> = journald
        .messages("many/0")
        .iter()
        .map(|line| number(line, 100))
        .collect();
    assert_eq!(numbers, (1..=20_000).collect::<Vec<_>>());
    for (message, priority) in [("out", "6"), ("err", "4")] {
        let mut entries = journald.of_worker("apart/0");
        entries.retain(|entry| entry.message() == message);
        assert_eq!(entries.len(), 1, "{message}");
        assert_eq!(entries[0].text("PRIORITY"), priority);
    }
    rig.ok(&["restart", "web/1"]);
    until("the second generation's lines", 3_000, || {
        let of = journald.of_worker("web/1");
        let generations: Vec<String> = of.iter().map(|e| e.text("LEASEHOLD_GENERATION")).collect();
        let right = generations == ["1", "1", "1", "1", "2", "2", "2", "2"];
        right.then_some(()).ok_or(format!("{generations:?}"))
    });
    // What people are told who look for it in files.
    let said = rig.cli(&["logs", "web/1", "-n", "5"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    let command = "journalctl -n 5 LEASEHOLD_FLEET=web LEASEHOLD_SLOT=1\n";
    assert!(said.err.ends_with(command), "{said:?}");
    let said = rig.cli(&["logs", "file", "apart"]);
    assert_eq!((said.code, said.out.as_str()), (0, "file/0 | in a file\n"));
    assert!(
        said.err
            .ends_with("journalctl -n 20 LEASEHOLD_FLEET=apart\n"),
        "{said:?}"
    );
    assert!(!rig.path("log/web").exists());
    rig.drain(5_000);
}

/// What was sent is consumed after: nothing is missing, and of each batch that was repeated all is there twice at most.
#[test]
fn kill_9_under_load_loses_nothing() {
    let mut rig = group();
    let journald = Journald::of(&mut rig);
    rig.configure(
        "[fleet.web]\ncommand = [{worker}, \"flood\", \"100000\", \"100\"]\nlog.sink = \"journal\"\n",
    );
    rig.start();
    let kills = 5;
    for _ in 0..kills {
        let supervisor = rig.status().supervisor();
        let had = journald.entries().len();
        until_true("it goes on", 5_000, || {
            journald.entries().len() > had + 2_000
        });
        send(supervisor, Signal::KILL);
        rig.wait("another supervisor", 3_000, |status| {
            status.supervisor() != supervisor
        });
    }
    let last = until("the last line", 60_000, || {
        let entry = journald.entries.lock().unwrap().last().cloned();
        let entry = entry.ok_or("none")?;
        let last = entry.message();
        last.starts_with("00100000 ").then_some(entry).ok_or(last)
    });
    let pid = rig.status().worker("web/0").unwrap().pid;
    assert_eq!(last.text("OBJECT_PID"), pid.to_string());
    let (mut next, mut repeats) = (1, 0);
    for line in journald.messages("web/0") {
        let number = number(&line, 100);
        assert!(number <= next, "{next} is missing before {number}");
        if number < next {
            repeats += 1;
            assert!(next - number <= 656, "{number} after {}", next - 1);
        }
        next = number + 1;
    }
    assert!(repeats <= kills, "{repeats} batches were repeated");
    rig.drain(5_000);
}

/// Lines wait in the pipe, it is said once, and all of them come when it is back.
#[test]
fn journald_goes_away_and_comes_back() {
    let mut rig = group();
    let mut journald = Journald::of(&mut rig);
    rig.configure(
        "[fleet.web]\ncommand = [{worker}, \"lines\", \"1\", \"0.01\"]\nworkers = 3\nlog.sink = \"journal\"\n",
    );
    rig.start_settled();
    until_true("it begins", 5_000, || journald.messages("web/2").len() > 20);
    // Read to the end of what the old one has: what is in its queue when it goes is nobody's.
    journald.go_away();
    until_true("it is said", 5_000, || {
        rig.stderr().contains("the journal cannot be written: ")
    });
    let before = rig.status();
    send(before.supervisor(), Signal::KILL);
    rig.wait("another supervisor", 3_000, |status| {
        status.supervisor() != before.supervisor()
    });
    pause(2_500);
    let text = rig.stderr();
    let told = text.matches("the journal cannot be written: ").count();
    assert!(
        told <= 2,
        "once by each supervisor, not {told} times: {text}"
    );
    journald.come_back();
    until_true("it is said", 5_000, || {
        rig.stderr().contains("the journal is written again\n")
    });
    rig.drain(5_000);
    for id in ["web/0", "web/1", "web/2"] {
        let lines = journald.messages(id);
        let (last, counted) = lines.split_last().unwrap();
        let mut numbers: Vec<usize> = counted
            .iter()
            .map(|line| line.strip_prefix("1 ").unwrap().parse().unwrap())
            .collect();
        numbers.dedup();
        // The old socket's queue of ten went with it.
        let missing = (1..=numbers[numbers.len() - 1]).filter(|n| !numbers.contains(n));
        let missing: Vec<usize> = missing.collect();
        assert!(missing.len() <= 11, "{id}: {missing:?}");
        assert_eq!(last, &format!("1 last {}", numbers[numbers.len() - 1]));
    }
}

#[test]
fn a_line_larger_than_a_datagram_arrives_whole() {
    let mut rig = group();
    let journald = Journald::of(&mut rig);
    rig.configure(
        r#"
        [fleet.web]
        command = ["/usr/bin/env", "python3", "-c", "import os,time\nos.write(1, b'before\\n' + b'y' * 1000000 + b'\\nafter\\n')\ntime.sleep(1000)"]
        log = { sink = "journal", buffer = "1MiB" }
        [fleet.small]
        command = ["/usr/bin/env", "python3", "-c", "import os,time\nd = b'z' * (1 << 20) + b'\\n'\nwhile d: d = d[os.write(1, d):]\ntime.sleep(1000)"]
        log = { sink = "journal" }
    "#,
    );
    rig.start_settled();
    until_true("all of it", 10_000, || {
        journald.of_worker("web/0").len() >= 3
    });
    let entries = journald.of_worker("web/0");
    assert_eq!(entries[0].message(), "before");
    assert!(entries[1].by_file && entries[1].message() == "y".repeat(1_000_000));
    assert!(!entries[1].fields.contains_key("LEASEHOLD_PARTIAL"));
    assert_eq!(entries[2].message(), "after");
    // In a pipe that is smaller it comes in pieces that say so, and none is lost.
    until("the pieces", 10_000, || {
        let entries = journald.of_worker("small/0");
        let length: usize = entries.iter().map(|entry| entry.message().len()).sum();
        (length == 1 << 20).then_some(()).ok_or(length.to_string())
    });
    let pieces = journald.of_worker("small/0");
    assert!(
        pieces
            .iter()
            .rev()
            .skip(1)
            .all(|piece| piece.text("LEASEHOLD_PARTIAL") == "1")
    );
    rig.drain(5_000);
}

/// A journald that reads nothing holds up those who chose to wait, and nobody else.
#[test]
fn a_deaf_journald_blocks_or_costs_lines_as_chosen() {
    let mut rig = group();
    let journald = Journald::of(&mut rig);
    journald.read(false);
    rig.configure(
        r#"
        [fleet.drops]
        command = ["/bin/sh", "-c", "n=0; while [ $n -lt 30000 ]; do n=$((n+1)); echo \"line $n of these is about as long as that\"; done; echo done > {notes}/done; while :; do n=$((n+1)); echo \"line $n of these is about as long as that\"; sleep 0.05; done"]
        log = { sink = "journal", on_full = "drop" }
        [fleet.waits]
        command = [{worker}, "flood", "5000", "100"]
        log = { sink = "journal" }
        [fleet.file]
        command = [{worker}, "flood", "5000", "100"]
    "#,
    );
    let status = rig.start();
    until_true("what drops goes on", 60_000, || {
        !rig.notes("done").is_empty()
    });
    until_true("people are told", 5_000, || {
        let text = rig.stderr();
        text.contains("drops/0: its log cannot be written: ")
            && text.contains("bytes dropped so far")
    });
    until_true("the file is written", 10_000, || {
        fs::read_to_string(rig.log("file/0")).is_ok_and(|text| text.lines().count() == 5_000)
    });
    // Nobody runs in circles for the room that there is not.
    let pids = [status.supervisor()];
    let used = ticks(&pids);
    pause(2_000);
    let used = ticks(&pids) - used;
    assert!(used <= 20, "{used} ticks of work in two seconds of waiting");
    assert!(journald.entries().is_empty());
    journald.read(true);
    until("what waited comes", 20_000, || {
        let lines = journald.messages("waits/0");
        (lines.len() == 5_000)
            .then_some(())
            .ok_or(lines.len().to_string())
    });
    let numbers: Vec<usize> = journald
        .messages("waits/0")
        .iter()
        .map(|line| number(line, 100))
        .collect();
    assert_eq!(numbers, (1..=5_000).collect::<Vec<_>>());
    until_true("people are told what was lost", 5_000, || {
        let text = rig.stderr();
        text.lines().any(|line| {
            line.contains("drops/0: its log is written again (") && line.ends_with("bytes dropped)")
        })
    });
    let told = rig.stderr().matches("drops/0: its log").count();
    assert!(told <= 8, "said {told} times: {}", rig.stderr());
    let mut before = 0;
    for line in journald.messages("drops/0") {
        let words: Vec<&str> = line.split(' ').collect();
        let number: usize = words[1].parse().unwrap();
        let whole = line == format!("line {number} of these is about as long as that");
        assert!(whole && number > before, "after {before}: {line:?}");
        before = number;
    }
    rig.drain(5_000);
}

/// Where output goes is changed without a worker noticing; not a line is missing in between.
#[test]
fn a_reload_changes_where_lines_go() {
    let mut rig = group();
    let journald = Journald::of(&mut rig);
    let with = |sink: &str| {
        format!(
            "[fleet.web]\ncommand = [{{worker}}, \"lines\", \"5\", \"0.01\"]\nlog.sink = {sink:?}\n"
        )
    };
    rig.configure(&with("file"));
    let before = rig.start_settled();
    until_true("it writes", 3_000, || has_lines(&rig.log("web/0")));
    rig.configure(&with("journal"));
    rig.ok(&["reload"]);
    until_true("the journal has some", 3_000, || {
        journald.messages("web/0").len() > 50
    });
    let entry = journald.of_worker("web/0").pop().unwrap();
    let worker = before.worker("web/0").unwrap();
    assert_eq!(entry.text("OBJECT_PID"), worker.pid.to_string());
    assert_eq!(entry.text("LEASEHOLD_GENERATION"), "1");
    let in_file = fs::read_to_string(rig.log("web/0")).unwrap();
    rig.configure(&with("file"));
    rig.ok(&["reload"]);
    until_true("the file has more", 3_000, || {
        fs::read_to_string(rig.log("web/0")).is_ok_and(|text| text.len() > in_file.len())
    });
    assert_eq!(rig.status().worker("web/0").unwrap().pid, worker.pid);
    rig.drain(5_000);
    let mut all: Vec<usize> = fs::read_to_string(rig.log("web/0"))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .chain(journald.messages("web/0"))
        .filter_map(|line| line.strip_prefix("1 ")?.parse().ok())
        .collect();
    all.sort_unstable();
    assert_eq!(all, (1..=all.len()).collect::<Vec<_>>());
}

fn has_lines(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.lines().count() > 20)
}
