//! `leasehold status`: fleets and workers in a table.

use clap::Args;

use crate::{
    cli::{Failure, Outcome, Reach, client::Client, print, print_json, table},
    config::units::count,
    engine::{command::matches, effect::Rough},
    exit::ExitCode,
    http::view::{FleetView, GateView, StatusView, WorkerView},
    time::Span,
};

/// With more workers than this only those with something to tell are listed.
const LIST_MAX: usize = 40;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Fleets or workers: names, `name/slot`, patterns [default: all]
    names: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// List every worker, however many there are
    #[arg(short, long)]
    verbose: bool,
}

pub(super) fn status(args: &StatusArgs) -> Outcome {
    let mut view = Client::new(&args.reach)?.status()?;
    narrow(&mut view, &args.names)?;
    if args.reach.json {
        print_json(&view)?;
    } else {
        print(&render(&view, args.verbose))?;
    }
    let ready = view.fleets.iter().all(|fleet| {
        matches!(fleet.state.as_str(), "held" | "standby")
            || fleet.kind == "cron"
            || fleet.ready + fleet.done >= fleet.desired
    });
    Ok(if ready && !view.supervisor.draining {
        ExitCode::Ok
    } else {
        ExitCode::NotReady
    })
}

/// Keeps what was asked for; a name that means nothing is an error.
fn narrow(view: &mut StatusView, names: &[String]) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    for name in names {
        let known = view.fleets.iter().any(|fleet| {
            matches(name, &fleet.name) || fleet.workers.iter().any(|w| matches(name, &w.id))
        });
        if !known {
            let all: Vec<&str> = view
                .fleets
                .iter()
                .map(|fleet| fleet.name.as_str())
                .collect();
            return Err(Failure::new(
                ExitCode::UnknownName,
                format!("nothing is called `{name}`; there are {}", all.join(", ")),
            ));
        }
    }
    for fleet in &mut view.fleets {
        if !names.iter().any(|name| matches(name, &fleet.name)) {
            fleet
                .workers
                .retain(|worker| names.iter().any(|name| matches(name, &worker.id)));
        }
    }
    view.fleets.retain(|fleet| {
        names.iter().any(|name| matches(name, &fleet.name)) || !fleet.workers.is_empty()
    });
    Ok(())
}

fn render(view: &StatusView, verbose: bool) -> String {
    let width = table::width_of(std::io::stdout());
    let mut text = String::new();
    if view.supervisor.draining {
        text.push_str("the daemon is draining everything\n\n");
    }
    if let Some(drained) = &view.drained {
        text.push_str(&format!(
            "the node takes no work: drained by {} at {}; `leasehold undrain` ends that\n\n",
            drained.who,
            table::seconds(&drained.since)
        ));
    }
    if let Some(why) = &view.config.rejected {
        let first = why.lines().next().unwrap_or_default();
        text.push_str(&format!(
            "the newest reload was rejected: {first}\n`leasehold check` shows all faults\n\n"
        ));
    }
    let fleets: Vec<Vec<String>> = view.fleets.iter().map(fleet_row).collect();
    text.push_str(&table::render(
        &["FLEET", "READY", "WANT", "STATE", "RESTARTS", "NOTE"],
        &fleets,
        width,
    ));
    let all: Vec<&WorkerView> = view
        .fleets
        .iter()
        .flat_map(|fleet| &fleet.workers)
        .collect();
    let listed: Vec<&&WorkerView> = all
        .iter()
        .filter(|w| verbose || all.len() <= LIST_MAX || !w.ready)
        .collect();
    if !listed.is_empty() {
        let rows: Vec<Vec<String>> = listed.iter().map(|worker| worker_row(worker)).collect();
        text.push('\n');
        text.push_str(&table::render(
            &[
                "WORKER", "STATE", "PID", "UP", "RESTARTS", "HELD BY", "NOTE",
            ],
            &rows,
            width,
        ));
    }
    let hidden = all.len() - listed.len();
    if hidden > 0 {
        text.push_str(&format!(
            "and {} (-v lists all)\n",
            count(hidden, "ready worker")
        ));
    }
    text
}

fn fleet_row(fleet: &FleetView) -> Vec<String> {
    let restarts: u64 = fleet.workers.iter().map(|worker| worker.restarts).sum();
    if let (None, Some(job)) = (&fleet.held, job_note(fleet)) {
        return vec![
            fleet.name.clone(),
            fleet.ready.to_string(),
            fleet.desired.to_string(),
            fleet.state.clone(),
            "-".to_owned(),
            job,
        ];
    }
    let note = match (&fleet.held, &fleet.rollout, &fleet.gate) {
        (Some(who), ..) => format!("held by {who}"),
        (None, Some(rollout), _) => format!("rollout {rollout}"),
        (
            None,
            None,
            Some(GateView {
                fence: Some(fence), ..
            }),
        ) => format!("has its lock, fence {fence}"),
        (None, None, Some(gate)) => gate
            .holder
            .as_ref()
            .map_or_else(String::new, |who| format!("lock {who}")),
        (None, None, None) => fleet
            .publish
            .as_ref()
            .and_then(|publish| publish.failure.as_ref())
            .map_or_else(String::new, |why| format!("not published: {why}")),
    };
    vec![
        fleet.name.clone(),
        fleet.ready.to_string(),
        fleet.desired.to_string(),
        fleet.state.clone(),
        restarts.to_string(),
        note,
    ]
}

/// When a job runs next, and what became of its last run.
fn job_note(fleet: &FleetView) -> Option<String> {
    let last = fleet
        .last
        .as_ref()
        .map_or_else(String::new, |last| format!("; last: {}", last.reason));
    let next = fleet.next.as_deref().unwrap_or("never");
    (fleet.kind == "cron").then(|| format!("next {next}{last}"))
}

fn worker_row(worker: &WorkerView) -> Vec<String> {
    let span = |ms: u64| Rough(Span::millis(ms)).to_string();
    let note = match worker {
        WorkerView {
            next_start_in_ms: Some(ms),
            last_exit,
            ..
        } => {
            let why = last_exit
                .as_ref()
                .map_or_else(String::new, |exit| format!("; {}", exit.reason));
            format!("next start in {}{why}", span(*ms))
        }
        WorkerView {
            grace_ms: Some(ms),
            ending,
            ..
        } => format!(
            "{}: SIGKILL in {}",
            ending.clone().unwrap_or_default(),
            span(*ms)
        ),
        WorkerView {
            status: Some(said), ..
        } => said.clone(),
        WorkerView {
            last_exit: Some(exit),
            ..
        } => format!("last: {}", exit.reason),
        _ => String::new(),
    };
    vec![
        worker.id.clone(),
        worker.state.clone(),
        worker
            .pid
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        worker.uptime_ms.map_or_else(|| "-".to_owned(), span),
        worker.restarts.to_string(),
        worker.containment.clone().unwrap_or_else(|| "-".to_owned()),
        note,
    ]
}
