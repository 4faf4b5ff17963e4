//! `leasehold singletons`: locks, who has them, and giving one to whoever waits for it.

use std::cell::RefCell;

use clap::{Args, Subcommand};

use crate::{
    cli::{
        Failure, Outcome, Reach, Wait,
        act::{self, Step},
        client::{Client, Repeat},
        cluster, print, print_json, table,
    },
    config::units::count,
    engine::{
        cluster::LockPicture,
        command::{ReleasedGate, Reply, matches},
        effect::Rough,
        release::no_singleton,
    },
    exit::ExitCode,
    http::{
        cluster::ClusterView,
        singletons::{HolderView, ShownView, SingletonView, SlotView},
        view::StatusView,
    },
    time::Span,
};

#[derive(Debug, Args)]
pub(super) struct SingletonsArgs {
    #[command(subcommand)]
    verb: Option<SingletonsVerb>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Subcommand)]
enum SingletonsVerb {
    /// Show who has the lock of every singleton, a row for each slot, and locks of the cluster that other nodes have (what `singletons` alone
    /// does)
    List {
        /// Singletons: names, patterns [default: all]
        names: Vec<String>,
    },
    /// Show everything of one singleton's locks, and what happened to them lately
    Show {
        /// The singleton, or one of its slots: `billing`, `billing/0`
        name: String,
    },
    /// Stop the worker and give its lock to whoever waits for it; taken back if nobody wants it
    Release {
        /// The singleton, or one of its slots: `billing`, `billing/0`
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have a singleton of the cluster moved, from whichever node has it to the one that is next; can be said on any of them
    Move {
        /// The singleton: `billing`
        name: String,
        /// To this node, which must wait for it; those before it step back
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
}

pub(super) fn singletons(args: &SingletonsArgs) -> Outcome {
    let reach = &args.reach;
    match &args.verb {
        None => list(&[], reach),
        Some(SingletonsVerb::List { names }) => list(names, reach),
        Some(SingletonsVerb::Show { name }) => show(name, reach),
        Some(SingletonsVerb::Release { name, wait }) => release(name, reach, wait),
        Some(SingletonsVerb::Move { name, to }) => move_to(name, to.as_deref(), reach),
    }
}

/// What is said to a name that means nothing here.
fn unknown(name: &str, status: &StatusView) -> Failure {
    let exists = status.fleets.iter().any(|fleet| fleet.name == name);
    let singletons = status.fleets.iter().filter(|fleet| fleet.gate.is_some());
    let known: Vec<&str> = singletons.map(|fleet| fleet.name.as_str()).collect();
    let mut why = no_singleton(name, exists, &known);
    if status.cluster.is_some() {
        why.push_str("; `leasehold cluster` shows the locks of other nodes");
    }
    Failure::new(ExitCode::UnknownName, why)
}

/// `billing/0` is a slot of `billing`.
fn parse(name: &str) -> Result<(&str, Option<u32>), Failure> {
    let Some((fleet, slot)) = name.split_once('/') else {
        return Ok((name, None));
    };
    let slot = slot.parse().map_err(|_| {
        let why = format!("`{name}` is no slot; {fleet}/0 would be");
        Failure::new(ExitCode::Usage, why)
    });
    Ok((fleet, Some(slot?)))
}

fn list(names: &[String], reach: &Reach) -> Outcome {
    let client = Client::new(reach)?;
    let mut all: Vec<SingletonView> = client.get("/v1/singletons")?;
    for name in names {
        if !all.iter().any(|one| matches(name, &one.name)) {
            let status = client.status()?;
            let is_idle = |name: &str| status.fleets.iter().any(|fleet| is_job(fleet, name));
            if !is_idle(name) {
                return Err(unknown(name, &status));
            }
        }
    }
    all.retain(|one| names.is_empty() || names.iter().any(|name| matches(name, &one.name)));
    if reach.json {
        return print_json(&all);
    }
    let others = match names {
        [] => of_others(&client, &all)?,
        _ => None,
    };
    if all.is_empty() && others.is_none() {
        eprintln!(
            "{}",
            match names {
                [] =>
                    "no singletons; a fleet becomes one by singleton = { scope = \"node\" }, and a job has a lock while its run needs one",
                _ => "no lock is held or waited for: these jobs have no run",
            }
        );
        return Ok(ExitCode::Ok);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .flat_map(|one| one.gates.iter().map(|gate| row(one, gate)))
        .collect();
    let heading = ["SLOT", "STATE", "FOR", "DEADLINE", "HOLDER", "LOCK"];
    let width = table::width_of(std::io::stdout());
    let own = (!rows.is_empty()).then(|| table::render(&heading, &rows, width));
    let parts: Vec<String> = own.into_iter().chain(others).collect();
    print(&parts.join("\n"))
}

/// Locks of the cluster that nothing of this node's configuration needs. None: there are none.
fn of_others(client: &Client, own: &[SingletonView]) -> Result<Option<String>, Failure> {
    let Some(membership) = client.status()?.cluster else {
        return Ok(None);
    };
    // Without etcd the answer would take its time to say so.
    if membership.state != "joined" {
        let why = membership
            .why
            .unwrap_or("nothing was heard of etcd".to_owned());
        return Ok(Some(format!(
            "locks of other nodes are not known: this node has no lease: {why}\n"
        )));
    }
    let view: ClusterView = match client.get("/v1/cluster") {
        Ok(view) => view,
        Err(Failure { why, .. }) => {
            return Ok(Some(format!("locks of other nodes are not known: {why}\n")));
        }
    };
    let is_own = |lock: &LockPicture| {
        let mut own = own.iter().filter(|one| one.scope == "cluster");
        own.any(|one| one.lock == lock.name)
    };
    let is_idle = |lock: &LockPicture| lock.holders.is_empty() && lock.waiting.is_empty();
    let others = view.locks.iter();
    let others: Vec<&LockPicture> = others
        .filter(|lock| !is_own(lock) && !is_idle(lock))
        .collect();
    if others.is_empty() {
        return Ok(None);
    }
    let width = table::width_of(std::io::stdout());
    let (table, revision) = (cluster::locks(others, width), view.revision);
    Ok(Some(format!(
        "other locks of the cluster, as of revision {revision}\n\n{table}"
    )))
}

/// A job that needs a lock and has no run now is a name that means something.
fn is_job(fleet: &crate::http::view::FleetView, name: &str) -> bool {
    fleet.kind == "cron" && fleet.gate.is_some() && matches(name, &fleet.name)
}

fn row(one: &SingletonView, gate: &SlotView) -> Vec<String> {
    let span = |ms: Option<u64>| {
        ms.map_or_else(|| "-".to_owned(), |ms| Rough(Span::millis(ms)).to_string())
    };
    vec![
        gate.id.clone(),
        gate.state.clone(),
        span(gate.for_ms),
        span(gate.deadline_in_ms),
        holder(gate),
        one.flock.clone().unwrap_or_else(|| one.lock.clone()),
    ]
}

/// Who has it, or why nobody here asks for it.
fn holder(gate: &SlotView) -> String {
    let by = gate.released_by.as_ref();
    let by = by.map_or_else(String::new, |who| format!(", released by {who}"));
    match (gate.state.as_str(), &gate.holder, &gate.why) {
        ("yielding", None, _) => format!("nobody yet{by}"),
        (_, Some(holder), _) => format!("{}{by}", holder_words(holder, gate)),
        ("shut", None, Some(why)) => format!("none here: {why}"),
        ("shut", None, None) => "none here".to_owned(),
        (_, None, Some(why)) => why.clone(),
        (_, None, None) => "not known yet".to_owned(),
    }
}

fn holder_words(holder: &HolderView, gate: &SlotView) -> String {
    if gate.fence.is_some() {
        let pid = holder.pid.map_or("no worker now".to_owned(), pid_words);
        let fence = gate.fence.unwrap_or_default();
        return format!("this node, {pid}, fence {fence}");
    }
    let whose = match (&holder.node, &holder.worker) {
        (Some(_), Some(worker)) if holder.here => format!("{worker} of this node"),
        (Some(node), Some(worker)) => format!("{worker} on {node}"),
        _ => "somebody who is no leasehold".to_owned(),
    };
    let pid = holder
        .pid
        .map_or_else(String::new, |pid| format!(", {}", pid_words(pid)));
    let keeper = holder
        .keeper
        .map_or_else(String::new, |pid| format!(", keeper pid {pid}"));
    let since = holder.since.as_deref();
    let since = since.map_or_else(String::new, |since| {
        format!(", since {}", table::seconds(since))
    });
    format!("{whose}{pid}{keeper}{since}")
}

fn pid_words(pid: i32) -> String {
    format!("pid {pid}")
}

fn shown(client: &Client, name: &str) -> Result<ShownView, Failure> {
    let status = client.status()?;
    let needs_lock = status
        .fleets
        .iter()
        .any(|fleet| fleet.name == name && fleet.gate.is_some());
    match needs_lock {
        true => client.get(&format!("/v1/singletons/{name}")),
        false => Err(unknown(name, &status)),
    }
}

fn show(name: &str, reach: &Reach) -> Outcome {
    let (fleet, slot) = parse(name)?;
    let mut view = shown(&Client::new(reach)?, fleet)?;
    if let Some(slot) = slot {
        if !view.singleton.gates.iter().any(|gate| gate.slot == slot) {
            let gates = view.singleton.gates.iter();
            let known: Vec<&str> = gates.map(|gate| gate.id.as_str()).collect();
            let why = match known.as_slice() {
                [one] => format!("{name} does not exist; there is {one}"),
                all => format!("{name} does not exist; there are {}", all.join(", ")),
            };
            return Err(Failure::new(ExitCode::UnknownName, why));
        }
        view.singleton.gates.retain(|gate| gate.slot == slot);
        view.events
            .retain(|row| row.worker.as_deref() == Some(name));
    }
    if reach.json {
        return print_json(&view);
    }
    print(&render(&view, table::width_of(std::io::stdout())))
}

fn render(view: &ShownView, width: Option<usize>) -> String {
    let one = &view.singleton;
    let lock = match &one.flock {
        Some(path) => path.clone(),
        None => one.lock.clone(),
    };
    let head = format!(
        "{}: {}, {}; lock {lock} of this {}, {}",
        one.name,
        if one.kind == "cron" {
            "job"
        } else {
            "singleton"
        },
        one.state,
        one.scope,
        count(one.slots, "slot")
    );
    let mut text = format!("{}\n", table::cut(&head, width));
    for gate in &one.gates {
        text.push('\n');
        let mut line = |key: &str, value: &str| {
            let line = format!("  {key:<9} {value}");
            text.push_str(&table::cut(&line, width));
            text.push('\n');
        };
        let age = gate
            .for_ms
            .map(|ms| format!(" for {}", Rough(Span::millis(ms))));
        let since = gate.since.as_deref().map(table::seconds);
        let since = since.map(|since| format!(" (since {since})"));
        let state = format!(
            "{}{}{}",
            gate.state,
            age.unwrap_or_default(),
            since.unwrap_or_default()
        );
        line(&gate.id, &state);
        let key = match (gate.state.as_str(), &gate.holder) {
            ("waiting", None) => "waits",
            _ => "holder",
        };
        line(key, &holder(gate));
        if let Some(path) = &gate.path {
            line("file", path);
        }
        if let Some(ms) = gate.deadline_in_ms {
            let left = Rough(Span::millis(ms));
            line("deadline", &format!("in {left}, unless it is renewed"));
        }
    }
    text.push('\n');
    for row in &view.events {
        let generation = row
            .generation
            .filter(|n| *n > 0)
            .map_or_else(String::new, |n| format!(" [{n}]"));
        let line = format!(
            "{} {}{generation} {}",
            table::seconds(&row.at),
            row.subject,
            row.text
        );
        text.push_str(&table::cut(&line, width));
        text.push('\n');
    }
    if view.events.is_empty() {
        text.push_str("nothing happened to it since this supervisor started\n");
    }
    text
}

fn move_to(name: &str, to: Option<&str>, reach: &Reach) -> Outcome {
    let client = Client::new(reach)?;
    let status = client.status()?;
    if !status.fleets.iter().any(|one| one.name == name) {
        return Err(unknown(name, &status));
    }
    let path = format!("/v1/singletons/{name}/move");
    let body = to.map_or_else(
        || serde_json::json!({}),
        |to| serde_json::json!({ "to": to }),
    );
    let reply = client.post(&path, &body, Repeat::Never)?;
    if reach.json {
        return print_json(&reply);
    }
    let Reply::Begun { names } = &reply else {
        let why = "the daemon did not say who goes";
        return Err(Failure::new(ExitCode::Failed, why));
    };
    let next = to.map_or_else(|| "whoever is next".to_owned(), |to| format!("node {to}"));
    print(&format!(
        "{} gives {name} to {next} when its worker has ended\n",
        names.join(", ")
    ))
}

fn release(name: &str, reach: &Reach, waiting: &Wait) -> Outcome {
    let (fleet, slot) = parse(name)?;
    let client = Client::new(reach)?;
    let status = client.status()?;
    if !status.fleets.iter().any(|one| one.name == fleet) {
        return Err(unknown(fleet, &status));
    }
    let path = format!("/v1/singletons/{fleet}/release");
    let body = slot.map_or_else(
        || serde_json::json!({}),
        |slot| serde_json::json!({ "slot": slot }),
    );
    let reply = client.post(&path, &body, Repeat::Never)?;
    let Reply::Released { gates } = &reply else {
        let why = "the daemon did not say what it releases";
        return Err(Failure::new(ExitCode::Failed, why));
    };
    if waiting.no_wait {
        if reach.json {
            return print_json(&reply);
        }
        let lines = gates
            .iter()
            .map(|gate| format!("{}: its lock is being released\n", gate.id));
        return print(&lines.collect::<String>());
    }
    let found: RefCell<Vec<SlotView>> = RefCell::default();
    let look = || -> Result<Step, Failure> {
        let now: ShownView = client.get(&path.replace("/release", ""))?;
        let mut slots = now.singleton.gates;
        slots.retain(|slot| gates.iter().any(|gate| gate.id == slot.id));
        let done = gates.iter().all(|gate| is_given(gate, &slots));
        found.replace(slots);
        Ok(Step::from(done))
    };
    act::wait(
        waiting,
        &client,
        |one| one.name == fleet,
        |_| look().unwrap_or_else(|failure| Step::Failed(failure.why)),
    )?;
    let slots = found.take();
    if reach.json {
        return print_json(&slots);
    }
    print(&slots.iter().map(outcome).collect::<String>())
}

/// Is it known who has it now?
fn is_given(gate: &ReleasedGate, slots: &[SlotView]) -> bool {
    let Some(slot) = slots.iter().find(|slot| slot.id == gate.id) else {
        return true;
    };
    match slot.state.as_str() {
        "open" => slot.fence != Some(gate.fence),
        "waiting" => slot.why.is_some(),
        "shut" => true,
        _ => false,
    }
}

fn outcome(slot: &SlotView) -> String {
    let id = &slot.id;
    match slot.state.as_str() {
        "open" => format!(
            "{id}: nobody else took its lock; it has it again ({})\n",
            holder(slot)
        ),
        "shut" => format!("{id}: its lock is given back, {}\n", holder(slot)),
        _ if slot.holder.is_some() => format!("{id}: its lock went to {}\n", holder(slot)),
        _ => format!(
            "{id}: its lock is given back, and waited for: {}\n",
            holder(slot)
        ),
    }
}
