//! The house's rules that a tool can check: which floor may import which, and what the engine must not touch.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every module of the crate with its floor. `sys` lies just below the other shells: they may use its nouns, it knows none of them.
const FLOORS: [(&str, u32); 17] = [
    ("id", 10),
    ("time", 10),
    ("exit", 10),
    ("wire", 12),
    ("config", 20),
    ("engine", 30),
    ("sys", 40),
    ("etcd", 45),
    ("http", 45),
    ("locks", 45),
    ("logs", 45),
    ("publish", 45),
    ("driver", 50),
    ("keeper", 50),
    ("cli", 60),
    ("main", 60),
    ("lib", 60),
];

fn floor(module: &str) -> u32 {
    FLOORS
        .iter()
        .find(|(name, _)| *name == module)
        .unwrap_or_else(|| panic!("{module} has no floor: add it to FLOORS"))
        .1
}

/// Every source file, with the top-level module it belongs to.
fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let named = paths.into_iter().map(|path| {
        let first = path
            .strip_prefix(&root)
            .unwrap()
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .into_owned();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        (module, path, text)
    });
    named.collect()
}

/// The part of a file that ships: its tests may use more.
fn shipped(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

/// Top-level modules named after `crate::`, in `use` trees too.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(tree) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for c in tree.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => name.clear(),
                    ':' if depth == 0 && !name.is_empty() => found.push(std::mem::take(&mut name)),
                    c if depth == 0 && (c.is_ascii_alphanumeric() || c == '_') => name.push(c),
                    _ => {}
                }
            }
        } else {
            found.push(
                rest.chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    found.retain(|name| FLOORS.iter().any(|(known, _)| known == name));
    found
}

#[test]
fn a_floor_imports_only_floors_below_it() {
    let mut seen = 0;
    for (module, path, text) in sources() {
        for target in imports(shipped(&text)) {
            seen += 1;
            let fine = target == module || floor(&target) < floor(&module);
            assert!(
                fine,
                "{} (floor {}) imports {target} (floor {})",
                path.display(),
                floor(&module),
                floor(&target)
            );
        }
    }
    assert!(
        seen > 100,
        "the scan found only {seen} imports: it is blind"
    );
}

#[test]
fn the_engine_has_no_clock_no_io_no_async_no_chance() {
    let banned = [
        "std::time",
        "std::fs",
        "std::net",
        "std::io",
        "std::thread",
        "HashMap",
        "HashSet",
        "tokio",
        "async ",
        "println!",
        "OwnedFd",
        "mpsc",
    ];
    for (module, path, text) in sources() {
        if module == "engine" {
            for word in banned {
                assert!(
                    !shipped(&text).contains(word),
                    "{} uses {word}",
                    path.display()
                );
            }
        }
    }
}

/// A jump of the wall clock can change nothing but what is shown, and when jobs run: only these files look at it. One of them tells the
/// engine, for its jobs; one sets a timer on it and cannot read it; one makes the fence of a lock file's very first holder, which is a number and no time; the others show it.
#[test]
fn the_wall_clock_is_for_people() {
    let allowed = [
        "sys/clock.rs",
        "sys/timer.rs",
        "http/server.rs",
        "driver/journal.rs",
        "driver/taking.rs",
        "driver/alarm.rs",
    ];
    for (_, path, text) in sources() {
        let named = allowed.iter().any(|name| path.ends_with(name));
        let looks = [
            "wall(",
            "wall_at",
            "Realtime",
            "SystemTime",
            "Timestamp::now",
            "Zoned::now",
        ];
        let found = looks.iter().find(|word| shipped(&text).contains(*word));
        assert!(
            named || found.is_none(),
            "{} reads the wall clock ({found:?})",
            path.display()
        );
    }
}

#[test]
fn async_stays_in_driver_etcd_http_publish_and_the_client() {
    for (module, path, text) in sources() {
        let allowed = matches!(module.as_str(), "driver" | "etcd" | "http" | "publish")
            || path.ends_with("cli/client.rs");
        assert!(
            allowed || !shipped(&text).contains("async "),
            "{} is async",
            path.display()
        );
    }
}

#[test]
fn unsafe_lives_in_named_files() {
    let allowed = [
        "sys/clone.rs",
        "sys/spawn.rs",
        "sys/child.rs",
        "sys/page.rs",
        "sys/seats.rs",
        "driver/link.rs",
    ];
    for (_, path, text) in sources() {
        let named = allowed.iter().any(|name| path.ends_with(name));
        assert!(
            named || !text.contains("unsafe {"),
            "{} has an unsafe block",
            path.display()
        );
    }
}

#[test]
fn only_the_keeper_spawns_and_nothing_looks_up_its_own_path() {
    for (module, path, text) in sources() {
        let text = shipped(&text);
        assert!(
            !text.contains("std::process::Command"),
            "{} starts a process of its own",
            path.display()
        );
        assert!(
            !text.contains("current_exe"),
            "{} looks up its own path",
            path.display()
        );
        assert!(
            module == "keeper" || module == "sys" || !text.contains("Spawner"),
            "{} spawns",
            path.display()
        );
    }
}
