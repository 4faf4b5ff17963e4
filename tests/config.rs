//! What a user sees when a configuration is wrong, as golden files; and laws of units and of `diff`.
//!
//! `tests/config/bad/CODE-WHAT.toml` is a configuration with a fault, and `.expected` beside it what is printed about it; in `warned`
//! are those that work, and of which `check` warns.
//! `UPDATE_GOLDEN=1 cargo test --test config` writes the expected files anew: read the difference before you commit it.
//! A configuration whose first line is `# as root` is read as root reads it; `# as a daemon that nobody contains` and `# where nobody
//! contains a daemon` likewise.

#[path = "config/example.rs"]
mod example;
#[path = "config/fake.rs"]
mod fake;
#[path = "config/laws.rs"]
mod laws;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use fake::FakeMachine;
use leasehold::config::{self, Config, Faults, LastResort};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

/// Every file below `dir`, with its path from there.
fn files_below(dir: &Path, from: &Path, out: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, from, out);
        } else if path.extension().is_none_or(|ending| ending != "expected") {
            let relative = path.strip_prefix(from).unwrap().to_owned();
            out.push((relative, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The names in `tests/config/KIND` that end in `ending`, without it.
fn names(kind: &str, ending: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(here().join(kind)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| Some(name.strip_suffix(ending)?.to_owned()))
        .collect()
}

/// Loads `tests/config/KIND/NAME.toml` as if the working directory were `tests/config/KIND`.
fn load(kind: &str, name: &str) -> Result<Config, Faults> {
    check(kind, name).map(|(config, _)| config)
}

/// The same, with warnings.
fn check(kind: &str, name: &str) -> Result<(Config, Faults), Faults> {
    let dir = here().join(kind);
    let mut files = Vec::new();
    files_below(&dir, &dir, &mut files);
    let mut machine = FakeMachine::with(files);
    let main = PathBuf::from(format!("{name}.toml"));
    let text = fs::read_to_string(dir.join(&main)).unwrap();
    machine.root = text.starts_with("# as root\n");
    machine.last_resort = match text.lines().next() {
        Some("# as a daemon that nobody contains") => LastResort::None,
        Some("# where nobody contains a daemon") => LastResort::NoneHere,
        _ => LastResort::ThereIs,
    };
    config::check(&main, &machine)
}

#[test]
fn every_fault_reads_as_expected() {
    compare("bad", |name| load("bad", name).err());
}

#[test]
fn every_warning_reads_as_expected() {
    let warnings = |name: &str| {
        let (_, warnings) = check("warned", name).unwrap_or_else(|faults| panic!("{faults}"));
        (!warnings.list.is_empty()).then_some(warnings)
    };
    compare("warned", warnings);
}

/// What is said of every file of a kind is what stands beside it.
fn compare(kind: &str, said: impl Fn(&str) -> Option<Faults>) {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let bad = here().join(kind);
    let mut complaints = String::new();
    for name in names(kind, ".toml") {
        let Some(faults) = said(&name) else {
            complaints.push_str(&format!("{name}.toml has no fault\n"));
            continue;
        };
        let shown = faults.render(false);
        check_places(&name, &faults, &shown);
        let path = bad.join(format!("{name}.expected"));
        if update {
            fs::write(&path, &shown).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&shown) {
            complaints.push_str(&format!("{name}.expected differs; now it is\n{shown}\n"));
        }
    }
    let (have, want) = (names(kind, ".expected"), names(kind, ".toml"));
    for name in have.difference(&want) {
        complaints.push_str(&format!("{name}.expected belongs to no {name}.toml\n"));
        if update {
            fs::remove_file(bad.join(format!("{name}.expected"))).unwrap();
        }
    }
    assert!(
        update || complaints.is_empty(),
        "{complaints}UPDATE_GOLDEN=1 writes the expected files anew"
    );
}

/// What programs get and what people see name the same places.
fn check_places(name: &str, faults: &Faults, shown: &str) {
    assert!(!faults.list.is_empty(), "{name}: refused without a reason");
    for row in faults.rows() {
        assert!(shown.contains(&row.message), "{name}: {row:?} is not shown");
        assert!(
            shown.contains(&format!("error[{}]", row.code))
                || shown.contains(&format!("warning[{}]", row.code)),
            "{name}: {row:?}"
        );
        if let Some(file) = &row.file {
            let (line, column) = (row.line.unwrap(), row.column.unwrap());
            let place = format!("--> {file}:{line}:{column}\n");
            assert!(shown.contains(&place), "{name}: {place} is not in\n{shown}");
        }
    }
}

#[test]
fn good_configurations_load() {
    for name in names("good", ".toml") {
        match check("good", &name) {
            Ok((_, warnings)) => assert!(warnings.list.is_empty(), "good/{name}: {warnings}"),
            Err(faults) => panic!("good/{name}.toml:\n{faults}"),
        }
    }
}

/// The name of a golden begins with the code it is there for, and shows it.
#[test]
fn every_code_has_a_golden() {
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for name in names("bad", ".toml") {
        let Err(faults) = load("bad", &name) else {
            continue;
        };
        let codes: BTreeSet<&str> = faults.list.iter().map(|fault| fault.code).collect();
        let (code, _) = name.split_once('-').unwrap();
        let code = code.to_ascii_uppercase();
        if code != "MANY" {
            assert!(codes.contains(code.as_str()), "{name} shows {codes:?}");
            shown.insert(code, name);
        }
    }
    for name in names("warned", ".toml") {
        let (code, _) = name.split_once('-').unwrap();
        shown.insert(code.to_ascii_uppercase(), name);
    }
    let missing: Vec<String> = codes_in_the_sources()
        .into_iter()
        .filter(|code| !shown.contains_key(code))
        .collect();
    assert!(
        missing.is_empty(),
        "no golden in tests/config/bad for {missing:?}"
    );
}

/// Every `"E123"` and `"W123"` in `src/config`.
fn codes_in_the_sources() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    for entry in fs::read_dir(dir).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for word in text.split('"').filter(|word| word.len() == 4) {
            let digits = word.strip_prefix(['E', 'W']).unwrap_or("");
            if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
                codes.insert(word.to_owned());
            }
        }
    }
    assert!(codes.len() > 30, "the scan finds only {codes:?}");
    codes
}

/// Independent faults of several files come in one report, in the order of the files.
#[test]
fn many_faults_are_reported_at_once() {
    let faults = load("bad", "many-at-once").unwrap_err();
    let codes: Vec<&str> = faults.list.iter().map(|fault| fault.code).collect();
    let distinct: BTreeSet<&&str> = codes.iter().collect();
    assert!(distinct.len() >= 12, "{codes:?}");
    let places: Vec<(usize, usize)> = faults
        .list
        .iter()
        .filter_map(|fault| fault.place.as_ref())
        .map(|(file, span)| (*file, span.start))
        .collect();
    assert!(places.is_sorted(), "{places:?}");
    assert!(places.iter().any(|(file, _)| *file == 1), "{places:?}");
}
