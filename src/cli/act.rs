//! Verbs that change something: `start`, `stop`, `restart`, `scale`, `signal`, `reload`; and waiting for what they began.

use std::io::IsTerminal;

use clap::Args;

use crate::{
    cli::{
        Failure, Outcome, Reach, Wait,
        client::{Client, Next, Repeat},
        plan, print, print_json, table,
    },
    config::diff::Change,
    engine::{
        command::{Reply, matches},
        effect::Rough,
    },
    exit::ExitCode,
    http::view::{FleetView, StatusView, WorkerView},
    sys::clock,
};

#[derive(Debug, Args)]
pub(super) struct NamesArgs {
    /// Fleets or workers: names, `name/slot`, patterns
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct SignalArgs {
    /// Fleets or workers: names, `name/slot`, patterns
    #[arg(required = true)]
    names: Vec<String>,
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGHUP")]
    signal: String,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    wait: Wait,
}

pub(super) fn start(args: &NamesArgs) -> Outcome {
    let reply = send(args, "start", Repeat::Harmless)?;
    finish(&args.names, (&args.reach, &args.wait), reply, |view| {
        each_selected(view, &args.names, all_ready, |worker| {
            worker.ready || worker.state == "standby"
        })
    })
}

pub(super) fn stop(args: &NamesArgs) -> Outcome {
    let reply = send(args, "stop", Repeat::Harmless)?;
    finish(&args.names, (&args.reach, &args.wait), reply, |view| {
        each_selected(
            view,
            &args.names,
            |fleet| Step::from(!fleet.workers.iter().any(is_live)),
            |worker| !is_live(worker),
        )
    })
}

pub(super) fn restart(args: &NamesArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    let before = client.status()?;
    let reply = send(args, "restart", Repeat::Never)?;
    finish(&args.names, (&args.reach, &args.wait), reply, move |view| {
        each_selected(view, &args.names, rolled_out, |worker| {
            worker.ready
                && generation(&before, &worker.id).is_none_or(|old| worker.generation > old)
        })
    })
}

pub(super) fn signal(args: &SignalArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    let body = serde_json::json!({ "names": args.names, "signal": args.signal });
    match client.post("/v1/signal", &body, Repeat::Never)? {
        Reply::Begun { names } if args.reach.json => print_json(&names),
        Reply::Begun { names } => print(&format!("{} sent to {}\n", args.signal, names.join(", "))),
        Reply::AlreadySo
        | Reply::Plan { .. }
        | Reply::Run { .. }
        | Reply::Released { .. }
        | Reply::Cluster(_) => Ok(ExitCode::Ok),
    }
}

pub(super) fn reload(args: &ReloadArgs) -> Outcome {
    let client = Client::new(&args.reach)?;
    let reply = client.post(
        "/v1/config/reload",
        &serde_json::json!({}),
        Repeat::Harmless,
    )?;
    let Reply::Plan { changes } = &reply else {
        return Err(Failure::new(
            ExitCode::Failed,
            "the daemon did not say what changed",
        ));
    };
    if args.reach.json {
        print_json(changes)?;
    } else {
        print(&plan::describe(changes))?;
    }
    let names: Vec<String> = changes
        .iter()
        .map(|change: &Change| change.fleet.to_string())
        .collect();
    if args.wait.no_wait || names.is_empty() {
        return Ok(ExitCode::Ok);
    }
    let concerns = |fleet: &FleetView| names.contains(&fleet.name);
    wait(&args.wait, &client, concerns, |view| {
        let concerned = view.fleets.iter().filter(|fleet| concerns(fleet));
        concerned
            .map(|fleet| {
                if fleet.state == "held" {
                    Step::Done
                } else {
                    rolled_out(fleet)
                }
            })
            .fold(Step::Done, Step::and)
    })
}

/// Whoever asks twice waits as well: that it was asked for does not say that nothing is left.
pub(super) fn drain(args: &NodeArgs) -> Outcome {
    set_node(args, "drain", |fleet| {
        let idle = fleet.kind != "cron" || fleet.state == "held";
        Step::from(idle && !fleet.workers.iter().any(is_live))
    })
}

pub(super) fn undrain(args: &NodeArgs) -> Outcome {
    set_node(args, "undrain", |fleet| match fleet.state.as_str() {
        "held" => Step::Done,
        _ => all_ready(fleet),
    })
}

fn set_node(args: &NodeArgs, verb: &str, fleet_done: impl Fn(&FleetView) -> Step) -> Outcome {
    let client = Client::new(&args.reach)?;
    let path = format!("/v1/node/{verb}");
    let reply = client.post(&path, &serde_json::json!({}), Repeat::Harmless)?;
    if args.reach.json {
        print_json(&reply)?;
    } else if reply == Reply::AlreadySo {
        eprintln!("already so");
    }
    if args.wait.no_wait {
        return Ok(ExitCode::Ok);
    }
    let all = |_: &FleetView| true;
    wait(&args.wait, &client, all, |view| {
        let fleets = view.fleets.iter();
        fleets.map(&fleet_done).fold(Step::Done, Step::and)
    })
}

fn send(args: &NamesArgs, verb: &str, repeat: Repeat) -> Result<(Client, Reply), Failure> {
    let client = Client::new(&args.reach)?;
    let reply = client.post(
        &format!("/v1/{verb}"),
        &serde_json::json!({ "names": args.names }),
        repeat,
    )?;
    Ok((client, reply))
}

/// How far something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    Wait,
    Failed(String),
}

impl Step {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed(why), _) | (_, Self::Failed(why)) => Self::Failed(why),
            (Self::Done, Self::Done) => Self::Done,
            (Self::Wait, _) | (_, Self::Wait) => Self::Wait,
        }
    }
}

impl From<bool> for Step {
    fn from(done: bool) -> Self {
        if done { Self::Done } else { Self::Wait }
    }
}

pub(super) fn is_live(worker: &WorkerView) -> bool {
    !matches!(
        worker.state.as_str(),
        "held" | "backing-off" | "failed" | "done" | "standby"
    )
}

pub(super) fn all_ready(fleet: &FleetView) -> Step {
    let lost = fleet.workers.iter().find(|worker| worker.state == "failed");
    match lost {
        Some(worker) => {
            let why = worker
                .last_exit
                .as_ref()
                .map_or_else(String::new, |exit| format!(": it {}", exit.reason));
            Step::Failed(format!(
                "{} failed too often{why}; `leasehold logs {}` shows its last words",
                worker.id, worker.id
            ))
        }
        // Its turn may come in a year.
        None if fleet.state == "standby" || fleet.kind == "cron" => Step::Done,
        None => Step::from(fleet.ready + fleet.done >= fleet.desired),
    }
}

fn rolled_out(fleet: &FleetView) -> Step {
    match fleet.rollout.as_deref() {
        Some("failed") => Step::Failed(format!(
            "the rollout of {} stopped: a new worker failed; `leasehold status {}` shows which",
            fleet.name, fleet.name
        )),
        Some(_) => Step::Wait,
        None => all_ready(fleet),
    }
}

fn generation(view: &StatusView, id: &str) -> Option<u64> {
    view.fleets
        .iter()
        .flat_map(|fleet| &fleet.workers)
        .find(|worker| worker.id == id)
        .map(|worker| worker.generation)
}

/// Asks every selected fleet and worker how far it is.
pub(super) fn each_selected(
    view: &StatusView,
    names: &[String],
    fleet_done: impl Fn(&FleetView) -> Step,
    worker_done: impl Fn(&WorkerView) -> bool,
) -> Step {
    let mut step = Step::Done;
    for fleet in &view.fleets {
        if names.iter().any(|name| matches(name, &fleet.name)) {
            step = step.and(fleet_done(fleet));
        }
        for worker in fleet
            .workers
            .iter()
            .filter(|worker| names.iter().any(|name| matches(name, &worker.id)))
        {
            step = step.and(worker_done(worker).into());
        }
    }
    step
}

/// Waits, with progress on stderr, and says what came of it.
pub(super) fn finish(
    names: &[String],
    (reach, waiting): (&Reach, &Wait),
    (client, reply): (Client, Reply),
    done: impl Fn(&StatusView) -> Step,
) -> Outcome {
    let already = reply == Reply::AlreadySo;
    if reach.json {
        print_json(&reply)?;
    } else if already {
        eprintln!("already so");
    }
    if waiting.no_wait || already {
        return Ok(ExitCode::Ok);
    }
    let concerns = |fleet: &FleetView| {
        let of = |name: &String| matches(name.split('/').next().unwrap_or(name), &fleet.name);
        names.iter().any(of)
    };
    wait(waiting, &client, concerns, done)
}

/// Waits until `done` says so, with progress on stderr.
pub(super) fn wait(
    waiting: &Wait,
    client: &Client,
    concerns: impl Fn(&FleetView) -> bool,
    done: impl Fn(&StatusView) -> Step,
) -> Outcome {
    let began = clock::now();
    let terminal = std::io::stderr().is_terminal();
    let (mut said, mut line) = (String::new(), "nothing heard of it".to_owned());
    let mut seen = None;
    let mut interrupts = client.interrupts()?;
    loop {
        let left = clock::now().until(began.after(waiting.timeout));
        let view = match client.next_status(seen, &mut interrupts, left.into())? {
            Next::Status(view) => view,
            Next::Interrupted => {
                clear_line(terminal, &said);
                return Err(Failure::new(
                    ExitCode::Interrupted,
                    "interrupted; the work goes on",
                ));
            }
            Next::TooLate => {
                clear_line(terminal, &said);
                let limit = Rough(waiting.timeout);
                return Err(Failure::new(
                    ExitCode::WaitTimedOut,
                    format!("not done after {limit}: {line}; the work goes on"),
                ));
            }
        };
        line = progress(&view, &concerns);
        match done(&view) {
            Step::Done => {
                clear_line(terminal, &said);
                return Ok(ExitCode::Ok);
            }
            Step::Failed(why) => {
                clear_line(terminal, &said);
                return Err(Failure::new(ExitCode::Failed, why));
            }
            Step::Wait => {}
        }
        if terminal {
            let spent = clock::now().since(began);
            // A line that wraps could not be taken back.
            let shown = format!("{line}, {}", Rough(spent));
            let width = table::width_of(std::io::stderr());
            eprint!("\r\x1b[K{}", table::cut(&shown, width));
            said.clone_from(&line);
        } else if line != said {
            eprintln!("{line}");
            said.clone_from(&line);
        }
        // An event wakes the next question.
        seen = Some(view.seq);
    }
}

fn clear_line(terminal: bool, said: &str) {
    if terminal && !said.is_empty() {
        eprint!("\r\x1b[K");
    }
}

fn progress(view: &StatusView, concerns: impl Fn(&FleetView) -> bool) -> String {
    let busy = view.fleets.iter().filter(|fleet| {
        let runs = fleet.kind == "cron" && !matches!(fleet.state.as_str(), "idle" | "held");
        concerns(fleet)
            && (runs
                || fleet.ready != fleet.desired
                || fleet.rollout.is_some()
                || fleet.workers.iter().any(|w| w.ending.is_some()))
    });
    let parts: Vec<String> = busy
        .map(|fleet| {
            let draining = fleet
                .workers
                .iter()
                .filter(|worker| worker.ending.is_some())
                .count();
            if fleet.kind == "cron" && draining == 0 {
                return format!("{} {}", fleet.name, fleet.state);
            }
            let tail = if draining > 0 {
                format!(", {draining} draining")
            } else {
                String::new()
            };
            format!(
                "{} {}/{} ready{tail}",
                fleet.name, fleet.ready, fleet.desired
            )
        })
        .collect();
    if parts.is_empty() {
        "settling".to_owned()
    } else {
        parts.join("; ")
    }
}
