//! `config/leasehold.toml` is where people look for a key: every one that is accepted is mentioned there, none that is not.

use std::{collections::BTreeSet, path::PathBuf};

use leasehold::config;
use toml::{Table, Value};

use crate::fake::FakeMachine;

const EXAMPLE: &str = include_str!("../../config/leasehold.toml");

/// Nobody reads this key, and no other looks like it.
const STRANGER: &str = "qqqqqqqqqqqqqqqqqqqq";
/// Stands for a name that a person chooses, as that of a fleet.
const NAME: &str = "zzzz";

/// The keys that a table knows, as a configuration is told that has another one there; none if there is no such table.
fn known(table: &[String]) -> Option<Vec<String>> {
    let head = match table.join(".") {
        path if path.is_empty() => String::new(),
        path => format!("[{path}]\n"),
    };
    let path = PathBuf::from("leasehold.toml");
    let machine =
        FakeMachine::with([(path.clone(), format!("schema = 1\n{head}{STRANGER} = 1\n"))]);
    let faults = config::load(&path, &machine).err()?;
    let help = faults.list.iter().find_map(|fault| {
        let its = fault.code == "E040" && fault.message.contains(STRANGER);
        its.then_some(&fault.help)
    })?;
    let list = help
        .strip_prefix("known keys: ")
        .expect("a key that is near to no other gets the whole list");
    Some(list.split(", ").map(str::to_owned).collect())
}

/// Every key below a table that holds no others itself, with `NAME` where any name may stand.
fn accepted(table: &[String], out: &mut BTreeSet<Vec<String>>) {
    for key in known(table).unwrap() {
        let below = [table, &[key]].concat();
        let named = [&below[..], &[NAME.to_owned()]].concat();
        if known(&below).is_some() {
            accepted(&below, out);
        } else if known(&named).is_some() {
            accepted(&named, out);
        } else {
            out.insert(below);
        }
    }
}

/// Every path that stands in the example, be it in a comment: whatever reads as a line of TOML, below the last head of a table.
fn mentioned(text: &str) -> BTreeSet<Vec<String>> {
    let mut out = BTreeSet::new();
    let mut head: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches('#').trim();
        let Ok(table) = line.parse::<Table>() else {
            continue;
        };
        if line.starts_with('[') {
            head.clear();
            let mut inner = &table;
            while let Some((key, next)) = inner.iter().next() {
                head.push(key.clone());
                inner = match next {
                    Value::Table(next) => next,
                    Value::Array(all) if let Some(Value::Table(next)) = all.first() => next,
                    _ => break,
                };
            }
            // What a fleet inherits is what a fleet can say.
            if head == ["defaults"] {
                head = vec!["fleet".to_owned(), NAME.to_owned()];
            }
        } else {
            paths(&head, &table, &mut out);
        }
    }
    out
}

fn paths(head: &[String], table: &Table, out: &mut BTreeSet<Vec<String>>) {
    for (key, value) in table {
        let path = [head, std::slice::from_ref(key)].concat();
        match value {
            Value::Table(inner) => paths(&path, inner, out),
            _ => {
                out.insert(path);
            }
        }
    }
}

/// Is it this key, or below it where every name is taken?
fn is_about(path: &[String], key: &[String]) -> bool {
    path.len() >= key.len()
        && std::iter::zip(path, key).all(|(part, wanted)| part == wanted || wanted == NAME)
}

/// Is it above this key? `ready` is a word or a table.
fn is_above(path: &[String], key: &[String]) -> bool {
    path.len() < key.len() && is_about(path, &key[..path.len()])
}

#[test]
fn the_example_mentions_every_key() {
    let mut keys = BTreeSet::new();
    accepted(&[], &mut keys);
    // Those of [defaults] are a fleet's.
    keys.retain(|key| key[0] != "defaults");
    let all = keys.clone();
    // What a job says as a fleet does is told of fleets.
    keys.retain(|key| {
        let as_fleet = [&["fleet".to_owned()], &key[1..]].concat();
        key[0] != "cron" || !all.contains(&as_fleet)
    });
    assert!(keys.len() > 60, "the walk finds only {keys:?}");
    for known in [
        "http.listen",
        "fleet.zzzz.socket.zzzz.backlog",
        "fleet.zzzz.hooks.pre_stop.run",
        "fleet.zzzz.ready",
        "cron.zzzz.retry.attempts",
    ] {
        let path: Vec<String> = known.split('.').map(str::to_owned).collect();
        assert!(
            keys.iter().any(|key| key.starts_with(&path)),
            "the walk does not find {known}"
        );
    }
    let mentioned = mentioned(EXAMPLE);
    let missing: Vec<String> = keys
        .iter()
        .filter(|key| !mentioned.iter().any(|path| is_about(path, key)))
        .map(|key| key.join("."))
        .collect();
    assert!(
        missing.is_empty(),
        "config/leasehold.toml says nothing about {missing:#?}"
    );
    let strange: Vec<String> = mentioned
        .iter()
        .filter(|path| {
            let read = |key: &Vec<String>| is_about(path, key) || is_above(path, key);
            !all.iter().any(read)
        })
        .map(|path| path.join("."))
        .collect();
    assert!(
        strange.is_empty(),
        "config/leasehold.toml tells of what nobody reads: {strange:#?}"
    );
}
