//! Lease pages, read by the examples in C, Python and Rust.

use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{
    rig::{Rig, both_ways, send, until},
    warm::standby,
};

both_ways!(
    every_reader_reads_the_page_and_its_end,
    a_standby_is_told_in_its_page_that_it_leads,
);

/// The three examples, ready to be run.
pub(crate) struct Readers(Vec<(&'static str, Vec<PathBuf>)>);

impl Readers {
    pub(crate) fn new(rig: &Rig) -> Self {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/page");
        let include = format!("-I{}", page.display());
        let mut readers = vec![
            (
                "Python",
                vec!["python3".into(), page.join("leasehold_page.py")],
            ),
            ("Rust", vec![rust_example()]),
        ];
        let flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", &include];
        let program = rig.compile("check", include_str!("../../examples/page/check.c"), &flags);
        readers.extend(program.map(|program| ("C", vec![program])));
        Self(readers)
    }

    /// What each says of a page.
    pub(crate) fn ask(&self, page: &fs::File) -> Vec<(&'static str, String)> {
        let ask = |(language, words): &(&'static str, Vec<PathBuf>)| {
            // Through the path: a descriptor of ours would have to be passed on by number.
            let path = format!("/proc/{}/fd/{}", std::process::id(), page.as_raw_fd());
            let script = format!("exec 9<{path}; LEASEHOLD_PAGE_FD=9 exec \"$@\"");
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]).args(words);
            let output = command.output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            let code = i32::from(!said.starts_with("yes"));
            assert_eq!(output.status.code(), Some(code), "{language}: {said}");
            (*language, said)
        };
        self.0.iter().map(ask).collect()
    }
}

/// Cargo builds examples before it runs tests, beside the binary.
fn rust_example() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_leasehold"));
    let example = binary.parent().unwrap().join("examples/page");
    assert!(
        example.exists(),
        "{} was not built: cargo build --example page",
        example.display()
    );
    example
}

/// By which number a worker knows its page. The environment is not there yet for a moment after the old memory has gone in an exec, of which
/// the keeper hears then.
pub(crate) fn page_number(pid: i32) -> Result<String, String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).map_err(|e| e.to_string())?;
    let mut lines = environ.split(|byte| *byte == 0);
    let number = lines.find_map(|line| line.strip_prefix(b"LEASEHOLD_PAGE_FD="));
    number
        .map(|number| String::from_utf8_lossy(number).into_owned())
        .ok_or_else(|| String::from_utf8_lossy(&environ).into_owned())
}

/// A worker's page, opened from outside: it outlives the worker.
pub(crate) fn page_of(pid: i32) -> fs::File {
    let number = until("it was given a page", 5_000, || page_number(pid));
    fs::File::open(format!("/proc/{pid}/fd/{number}")).unwrap()
}

/// Two daemons of one machine, and workers that are started before they have the lock (`warm`).
fn a_standby_is_told_in_its_page_that_it_leads(mut a: Rig) {
    let Some(mut b) = Rig::new(a.mode) else {
        return;
    };
    let readers = Readers::new(&a);
    let lock = a.path("lock");
    for rig in [&a, &b] {
        rig.configure(&format!(
            r#"
            [fleet.job]
            command = [{{worker}}, "sleep"]
            singleton = {{ scope = "node", flock = "{}", warm = true }}
            "#,
            lock.display()
        ));
    }
    let led = a.start_settled().worker("job/0").unwrap().pid;
    b.start();
    let pid = standby(&b);
    let page = page_of(pid);
    for (language, said) in readers.ask(&page) {
        assert_eq!(said, "no", "{language}");
    }
    a.ok(&["singletons", "release", "job"]);
    let status = b.wait("it leads", 5_000, |status| {
        status.worker("job/0").is_some_and(|worker| worker.ready)
    });
    let worker = status.worker("job/0").unwrap();
    assert_eq!((worker.pid, worker.generation), (pid, 1));
    let fence = status.fleet("job")["gate"]["fence"].as_u64().unwrap();
    let expected = format!("yes fence {fence} epoch 0 generation 1 role 1");
    for (language, said) in readers.ask(&page) {
        assert_eq!(said, expected, "{language}");
    }
    // Whoever takes the lock behind a dead daemon's back is to know whom to end.
    let record = fs::read_to_string(&lock).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["leader"]["pid"], pid, "{record}");
    assert_ne!(standby(&a), led);
    b.drain(5_000);
    for (language, said) in readers.ask(&page) {
        assert_eq!(said, "no", "{language}");
    }
    a.wait("it leads again", 5_000, |status| {
        status.worker("job/0").is_some_and(|worker| worker.ready)
    });
}

/// A page of its own for every generation; nobody can write it, and it is over when its generation is.
fn every_reader_reads_the_page_and_its_end(mut rig: Rig) {
    let readers = Readers::new(&rig);
    rig.configure(
        r#"
        [fleet.job]
        command = [{worker}, "sleep"]
        singleton = { scope = "node", flock = "{dir}/lock" }
        restart = { backoff = "1ms..5ms" }
        "#,
    );
    rig.start_settled();
    let mut pages = Vec::new();
    for generation in 1..=3 {
        let status = rig.wait("a generation", 5_000, |status| {
            status
                .worker("job/0")
                .is_some_and(|w| w.ready && w.generation == generation)
        });
        let pid = status.worker("job/0").unwrap().pid;
        let page = page_of(pid);
        let fence = status.fleet("job")["gate"]["fence"].as_u64().unwrap();
        let expected = format!("yes fence {fence} epoch 0 generation {generation} role 1");
        for (language, said) in readers.ask(&page) {
            assert_eq!(said, expected, "{language}");
        }
        let path = format!("/proc/{}/fd/{}", std::process::id(), page.as_raw_fd());
        let written = fs::File::options().write(true).open(path);
        let written = written.and_then(|mut file| std::io::Write::write(&mut file, b"x"));
        assert!(written.is_err(), "the page could be written");
        pages.push(page);
        send(pid, Signal::KILL);
    }
    for page in &pages {
        until("the page of a dead generation is over", 5_000, || {
            let said = readers.ask(page);
            let over = said.iter().all(|(_, said)| said == "no");
            over.then_some(()).ok_or(format!("{said:?}"))
        });
    }
    rig.drain(5_000);
}
