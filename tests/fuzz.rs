//! Inputs that nobody meant: configurations, wire packets, notify datagrams and HTTP requests, mutated from a corpus.
//!
//! Each target replays its corpus in `tests/fuzz/corpus`, then runs for FUZZ_SECONDS (2). A run is a function of FUZZ_SEED; a failure
//! prints seed, round and the smallest input found that still fails: add it to the corpus with the change that mends it.
//! FUZZ_TRACE=1 prints every input before it is tried, for the failures that end the process (a stack that overflows).
//!
//! A corpus file is one input; in a `.hex` file every line is one, and `#` begins a remark.

#[path = "config/fake.rs"]
mod fake;
#[path = "fuzz/hex.rs"]
mod hex;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/targets.rs"]
mod targets;

use std::{
    cell::Cell,
    fs, panic,
    path::Path,
    sync::{Arc, Mutex, Once, mpsc},
    thread,
    time::Duration,
};

use leasehold::{sys::clock, time::Span};
use mutate::{Dice, mutate, shrink};

/// One input must be done by then: a parser that takes longer hangs its daemon.
const PATIENCE: Duration = Duration::from_secs(20);

/// A target panics on an input that shows a fault.
type Target = fn(&[u8]);

#[test]
fn configurations() {
    fuzz("config", targets::config, targets::CONFIG_WORDS);
}

#[test]
fn wire_packets() {
    fuzz("wire", targets::wire, targets::WIRE_WORDS);
}

#[test]
fn notify_datagrams() {
    fuzz("notify", targets::notify, targets::NOTIFY_WORDS);
}

#[test]
fn http_requests() {
    fuzz("http", targets::http, targets::HTTP_WORDS);
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
    })
}

/// What the target's thread works on, for the one that waits for it.
#[derive(Clone, Debug, Default)]
struct Current {
    count: u64,
    input: Vec<u8>,
}

fn fuzz(name: &'static str, target: Target, words: &'static [&'static [u8]]) {
    let (seed, seconds) = (number("FUZZ_SEED", 20_261_120), number("FUZZ_SECONDS", 2));
    let current = Arc::new(Mutex::new(Current::default()));
    let (done, wait) = mpsc::channel();
    let shared = Arc::clone(&current);
    // As much stack as a main thread has.
    let runner = thread::Builder::new()
        .name(format!("fuzz {name}"))
        .stack_size(8 << 20);
    let runner = runner
        .spawn(move || {
            let found = run(name, target, words, seed, Span::secs(seconds), &shared);
            let _ = done.send(found);
        })
        .unwrap();
    let mut before = None;
    loop {
        match wait.recv_timeout(PATIENCE) {
            Ok(Ok(())) => break,
            Ok(Err(failure)) => panic!("{failure}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let now = current.lock().unwrap().clone();
                if before == Some(now.count) {
                    panic!(
                        "{name}, FUZZ_SEED={seed}: no end after {PATIENCE:?} with\n{}",
                        show(&now.input)
                    );
                }
                before = Some(now.count);
            }
        }
    }
    runner.join().unwrap();
}

thread_local! {
    /// While a failing input is made smaller, its panics are not printed.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn quieten() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
}

/// What the target says about this input, if it panics.
fn panics(target: Target, input: &[u8]) -> Option<String> {
    let why = panic::catch_unwind(|| target(input)).err()?;
    let text = why.downcast_ref::<String>().cloned();
    let text = text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some(text.unwrap_or_default())
}

fn run(
    name: &str,
    target: Target,
    words: &[&[u8]],
    seed: u64,
    time: Span,
    current: &Mutex<Current>,
) -> Result<(), String> {
    quieten();
    let trace = std::env::var_os("FUZZ_TRACE").is_some();
    let attempt = |input: &[u8], what: &str| {
        if trace {
            eprintln!("{name}, {what}:\n{}", show(input));
        }
        {
            let mut current = current.lock().unwrap();
            current.count += 1;
            current.input.clear();
            current.input.extend_from_slice(input);
        }
        if panics(target, input).is_none() {
            return Ok(());
        }
        QUIET.set(true);
        let small = shrink(input.to_vec(), |input| panics(target, input).is_some());
        let why = panics(target, &small).unwrap_or_default();
        Err(format!("{name}, {what}: {why}\n{}", show(&small)))
    };
    let corpus = corpus(name);
    let mut inputs = Vec::new();
    for (file, input) in corpus {
        attempt(&input, &file)?;
        inputs.push(input);
    }
    let end = clock::now().after(time);
    let mut round = 0;
    while clock::now() < end {
        let input = mutate(&mut Dice::of(seed, round), &inputs, words);
        attempt(&input, &format!("FUZZ_SEED={seed} round {round}"))?;
        round += 1;
    }
    println!(
        "{name}: {} inputs of the corpus, {round} mutated, FUZZ_SEED={seed}",
        inputs.len()
    );
    Ok(())
}

/// The inputs of `tests/fuzz/corpus/NAME`, each with the file it stands in.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    // The order of a directory differs from machine to machine; a seed's story must not.
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let (shown, bytes) = (path.display().to_string(), fs::read(&path).unwrap());
        if path.extension().is_some_and(|ending| ending == "hex") {
            let text = String::from_utf8(bytes).unwrap();
            let lines = text
                .lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'));
            all.extend(lines.map(|line| (shown.clone(), hex::read(line).unwrap())));
        } else {
            all.push((shown, bytes));
        }
    }
    assert!(!all.is_empty(), "no corpus in {}", dir.display());
    all
}

#[test]
fn a_failing_input_is_found_and_made_small() {
    let current = Mutex::default();
    let target: Target = |input| assert!(!input.contains(&b'='), "on purpose");
    let found = run(
        "notify",
        target,
        targets::NOTIFY_WORDS,
        1,
        Span::secs(1),
        &current,
    )
    .unwrap_err();
    assert!(found.ends_with("3d\n= \"=\""), "{found}");
}

/// In hex, to be copied, and as text, to be read.
fn show(bytes: &[u8]) -> String {
    format!(
        "{}\n= {:?}",
        hex::write(bytes),
        String::from_utf8_lossy(bytes)
    )
}
