//! `leasehold cron`: jobs, their ticks to come, a run now.

use std::cell::RefCell;

use clap::{Args, Subcommand};
use jiff::tz::TimeZoneDatabase;

use crate::{
    cli::{
        Failure, Outcome, Reach, Wait,
        act::{self, Step},
        client::{Client, Repeat},
        parse_span, print, print_json, table,
    },
    config::fault::nearest,
    engine::{
        cluster::RunPicture,
        command::{Reply, matches},
        effect::Rough,
    },
    exit::ExitCode,
    http::{
        cluster::ClusterView,
        crons::{CronView, RunView},
    },
    time::Span,
};

#[derive(Debug, Args)]
pub(super) struct CronArgs {
    #[command(subcommand)]
    verb: CronVerb,
}

#[derive(Debug, Subcommand)]
enum CronVerb {
    /// Show jobs: when they run next, what became of their last run
    List {
        /// Jobs: names, patterns [default: all]
        names: Vec<String>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show when a job runs next
    Next {
        /// The job
        name: String,
        /// So many ticks
        #[arg(short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        n: u32,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show what became of a job's runs, the newest first
    History {
        /// The job
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// Start a run now, whatever the schedule says; exit 9 if `overlap`, a hold or its lock refuses it, 1 if the disk does
    Run {
        /// The job
        name: String,
        #[command(flatten)]
        reach: Reach,
        /// Wait for its end, and exit with its code (0 after success, 128 and the number after a signal, 1 if it failed otherwise)
        #[arg(long)]
        wait: bool,
        /// With --wait: no longer than this (then exit 6; the run goes on)
        #[arg(long, value_name = "DURATION", default_value = "infinity", value_parser = parse_span, requires = "wait")]
        timeout: Span,
    },
}

/// The number to exit with: that of a run, if one was waited for.
pub(super) fn cron(args: &CronArgs) -> Result<u8, Failure> {
    let code = match &args.verb {
        CronVerb::List { names, reach } => list(names, reach),
        CronVerb::Next { name, n, reach } => next(name, *n, reach),
        CronVerb::History { name, reach } => history(name, reach),
        CronVerb::Run {
            name,
            reach,
            wait: false,
            ..
        } => begin(name, reach),
        CronVerb::Run {
            name,
            reach,
            timeout,
            ..
        } => return run(name, reach, *timeout),
    };
    code.map(ExitCode::number)
}

fn jobs(client: &Client, ticks: u32) -> Result<Vec<CronView>, Failure> {
    client.get(&format!("/v1/crons?next={ticks}"))
}

fn unknown(name: &str, jobs: &[CronView]) -> Failure {
    let known = || jobs.iter().map(|job| job.name.as_str());
    let help = match nearest(name, known()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if jobs.is_empty() => "there are none".to_owned(),
        None => format!("there are {}", known().collect::<Vec<_>>().join(", ")),
    };
    Failure::new(
        ExitCode::UnknownName,
        format!("no job is called `{name}`; {help}"),
    )
}

fn find(mut jobs: Vec<CronView>, name: &str) -> Result<CronView, Failure> {
    match jobs.iter().position(|job| job.name == name) {
        Some(at) => Ok(jobs.swap_remove(at)),
        None => Err(unknown(name, &jobs)),
    }
}

fn list(names: &[String], reach: &Reach) -> Outcome {
    let mut jobs = jobs(&Client::new(reach)?, 1)?;
    for name in names {
        if !jobs.iter().any(|job| matches(name, &job.name)) {
            return Err(unknown(name, &jobs));
        }
    }
    jobs.retain(|job| names.is_empty() || names.iter().any(|name| matches(name, &job.name)));
    if reach.json {
        return print_json(&jobs);
    }
    if jobs.is_empty() {
        eprintln!("no jobs; add [cron.NAME] with a schedule and a command");
        return Ok(ExitCode::Ok);
    }
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    let heading = ["NAME", "SCHEDULE", "ZONE", "NEXT", "STATE", "LAST"];
    let width = table::width_of(std::io::stdout());
    print(&table::render(&heading, &rows, width))
}

fn row(job: &CronView) -> Vec<String> {
    let state = match &job.running {
        Some(run) if run.attempt > 1 => format!("{}, attempt {}", job.state, run.attempt),
        _ => job.state.clone(),
    };
    let state = match job.waiting {
        0 => state,
        waiting => format!("{state}, {waiting} waiting"),
    };
    vec![
        job.name.clone(),
        job.schedule.clone(),
        job.timezone.clone(),
        job.next.clone().unwrap_or_else(|| "-".to_owned()),
        state,
        job.last.as_ref().map_or_else(|| "-".to_owned(), last),
    ]
}

/// `succeeded in 2.1s at 2026-11-21T02:30:02Z`.
fn last(run: &RunView) -> String {
    let ended = table::seconds(&run.ended);
    match run.took_ms {
        Some(ms) => format!(
            "{} after {} at {ended}",
            run.reason,
            Rough(Span::millis(ms))
        ),
        None => format!("{} at {ended}", run.reason),
    }
}

fn next(name: &str, n: u32, reach: &Reach) -> Outcome {
    let job = find(jobs(&Client::new(reach)?, n)?, name)?;
    if reach.json {
        return print_json(&job.upcoming);
    }
    if job.state == "held" {
        eprintln!("{name} is held: nothing is started until `leasehold start {name}`");
    }
    if job.upcoming.is_empty() {
        eprintln!("{name} has no more ticks");
    }
    let lines: Vec<String> = job
        .upcoming
        .iter()
        .map(|tick| format!("{tick}  {}\n", local(tick, &job.timezone)))
        .collect();
    print(&lines.concat())
}

/// As clocks there show it: `Sat 2026-11-21 03:30 CET`.
fn local(tick: &str, zone: &str) -> String {
    let Ok(tick) = tick.parse::<jiff::Timestamp>() else {
        return String::new();
    };
    let zone = TimeZoneDatabase::bundled().get(zone).ok();
    zone.map_or_else(String::new, |zone| {
        let shown = tick.to_zoned(zone);
        shown.strftime("%a %Y-%m-%d %H:%M %Z").to_string()
    })
}

/// Of a job of the cluster, what all nodes did.
fn cluster_history(client: &Client, name: &str, reach: &Reach) -> Outcome {
    let view: ClusterView = client.get("/v1/cluster")?;
    let runs = view.runs.into_iter().filter(|run| run.job == name);
    let mut runs: Vec<RunPicture> = runs.collect();
    runs.reverse();
    if reach.json {
        return print_json(&runs);
    }
    let row = |run: &RunPicture| {
        let took = run
            .ended
            .map(|ended| Rough(ended.since(run.started)).to_string());
        let what = run.reason.clone().unwrap_or_else(|| run.outcome.clone());
        vec![
            run.scheduled.to_string(),
            run.node.clone(),
            took.unwrap_or_else(|| "-".to_owned()),
            what,
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    let width = table::width_of(std::io::stdout());
    let text = table::render(&["TICK", "NODE", "TOOK", "WHAT"], &rows, width);
    print(&format!("{text}\nas of revision {}\n", view.revision))
}

fn history(name: &str, reach: &Reach) -> Outcome {
    let client = Client::new(reach)?;
    let job = find(jobs(&client, 1)?, name)?;
    if job.cluster {
        match cluster_history(&client, name, reach) {
            Ok(code) => return Ok(code),
            Err(failure) => eprintln!("leasehold: {}; what this node did:", failure.why),
        }
    }
    if reach.json {
        return print_json(&job.history);
    }
    let row = |run: &RunView| {
        let ticks = match run.count {
            1 => run.scheduled.clone(),
            more => format!("{} and {} more", run.scheduled, more - 1),
        };
        let took = run.took_ms.map(|ms| Rough(Span::millis(ms)).to_string());
        vec![
            ticks,
            if run.manual { "asked" } else { "schedule" }.to_owned(),
            run.attempts.to_string(),
            took.unwrap_or_else(|| "-".to_owned()),
            run.reason.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = job.history.iter().map(row).collect();
    let heading = ["SCHEDULED", "BY", "ATTEMPTS", "TOOK", "OUTCOME"];
    let width = table::width_of(std::io::stdout());
    print(&table::render(&heading, &rows, width))
}

/// Asks for a run; what it is called by, and whether it waits for its turn.
fn ask(client: &Client, name: &str) -> Result<(Reply, String, bool), Failure> {
    find(jobs(client, 1)?, name)?;
    let path = format!("/v1/crons/{name}/run");
    let reply = client.post(&path, &serde_json::json!({}), Repeat::Never)?;
    match &reply {
        Reply::Run {
            scheduled, queued, ..
        } => Ok((reply.clone(), scheduled.clone(), *queued)),
        Reply::Begun { .. }
        | Reply::AlreadySo
        | Reply::Released { .. }
        | Reply::Plan { .. }
        | Reply::Cluster(_) => Err(Failure::new(
            ExitCode::Failed,
            "the daemon did not say which run it began",
        )),
    }
}

fn begin(name: &str, reach: &Reach) -> Outcome {
    let (reply, scheduled, queued) = ask(&Client::new(reach)?, name)?;
    if reach.json {
        return print_json(&reply);
    }
    print(&match queued {
        true => format!("{name}: run {scheduled} waits for its turn\n"),
        false => format!("{name}: run {scheduled} has begun\n"),
    })
}

fn run(name: &str, reach: &Reach, timeout: Span) -> Result<u8, Failure> {
    let client = Client::new(reach)?;
    let (_, scheduled, _) = ask(&client, name)?;
    let waiting = Wait {
        no_wait: false,
        timeout,
    };
    let found: RefCell<Option<RunView>> = RefCell::default();
    let look = || -> Result<Step, Failure> {
        let job = find(jobs(&client, 1)?, name)?;
        let mut ended = job.history.into_iter();
        let running = job.running.is_some_and(|run| run.scheduled == scheduled);
        if let Some(mine) = ended.find(|run| run.scheduled == scheduled) {
            found.replace(Some(mine));
            return Ok(Step::Done);
        }
        Ok(match running || job.waiting > 0 {
            true => Step::Wait,
            false => Step::Failed(format!(
                "{name} keeps no record of its run {scheduled} (history)"
            )),
        })
    };
    act::wait(
        &waiting,
        &client,
        |fleet| fleet.name == name,
        |_| look().unwrap_or_else(|failure| Step::Failed(failure.why)),
    )?;
    let Some(ended) = found.take() else {
        return Ok(ExitCode::Failed.number());
    };
    if reach.json {
        print_json(&ended)?;
    }
    if ended.outcome == "succeeded" {
        return Ok(ExitCode::Ok.number());
    }
    eprintln!(
        "leasehold: {name}: {}; `leasehold logs {name}` shows its output",
        ended.reason
    );
    let own = ended.code.or(ended.signal.map(|signal| 128 + signal));
    let own = own.and_then(|code| u8::try_from(code).ok());
    // `success` may leave 0 out.
    let own = own.filter(|code| *code != ExitCode::Ok.number());
    Ok(own.unwrap_or(ExitCode::Failed.number()))
}
