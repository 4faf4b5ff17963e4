//! argv in, exit code out. A verb a file; stdout is data, stderr is messages and progress.

mod act;
mod check;
mod client;
mod cluster;
mod config;
mod cron;
mod directories;
mod endpoints;
mod events;
mod journalctl;
mod lock;
mod logs;
mod plan;
mod run;
mod scale;
mod singletons;
mod status;
mod table;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{exit::ExitCode, keeper};

/// Keeps fleets of worker processes up on one machine, and outlives its own supervisor.
#[derive(Debug, Parser)]
#[command(
    name = "leasehold",
    version,
    about,
    max_term_width = 100,
    propagate_version = true
)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 not ready or not running, 4 unknown name, 5 changes pending, \
6 wait timed out (the work goes on), 7 daemon unreachable, 8 permission, 9 conflict, 78 configuration, 130 interrupted. `lock` ends as its command does."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground (what systemd's ExecStart does)
    Run(run::RunArgs),
    /// Check a configuration: all faults at once, with their places
    Check(check::CheckArgs),
    /// Show what `reload` would change
    Plan(plan::PlanArgs),
    /// Read the configuration again and apply what changed
    Reload(act::ReloadArgs),
    /// Show fleets and workers
    Status(status::StatusArgs),
    /// Lift holds and start what is not running
    Start(act::NamesArgs),
    /// Stop, and keep stopped until `start`, over restarts and reboots
    Stop(act::NamesArgs),
    /// Replace workers: a fleet a few at a time, a single worker at once
    Restart(act::NamesArgs),
    /// Stop everything on this node and keep it empty, over restarts and reboots; what it has of the cluster goes to other nodes
    Drain(act::NodeArgs),
    /// Have this node take work again
    Undrain(act::NodeArgs),
    /// Give a fleet another number of workers, or its configured one (`auto`); explain the one it has
    Scale(scale::ScaleArgs),
    /// Send a signal to workers' leaders
    Signal(act::SignalArgs),
    /// Show jobs, when they run next, what became of their runs; run one now
    Cron(cron::CronArgs),
    /// Show who has the locks of singletons, why and since when; give one to whoever waits
    Singletons(singletons::SingletonsArgs),
    /// Show all nodes and locks of the cluster as of one revision, and how etcd is
    Cluster(cluster::ClusterArgs),
    /// Show what is published where, how far behind it is, and why
    Endpoints(endpoints::EndpointsArgs),
    /// Print workers' output
    Logs(logs::LogsArgs),
    /// Print what happened
    Events(events::EventsArgs),
    /// Look at the configuration that is in force
    Config(config::ConfigArgs),
    /// Run one command while holding a lock, and nothing of it longer than that; needs no daemon
    Lock(lock::LockArgs),
    /// The process that decides for `lock`; started by that alone
    #[command(hide = true, name = "lock-supervisor")]
    Tend(lock::TendArgs),
    /// The process that decides; started by `run` alone
    #[command(hide = true)]
    Supervisor(run::SupervisorArgs),
}

/// How to reach the daemon, and how to print; the same for every verb that asks it something.
#[derive(Clone, Debug, Args)]
struct Reach {
    /// The daemon's control socket [default: the run directory's control.sock]
    #[arg(long, value_name = "PATH", env = "LEASEHOLD_SOCKET", global = true)]
    socket: Option<PathBuf>,
    /// The daemon's run directory, if it was started with one
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

/// How long to wait for the end of what was asked.
#[derive(Clone, Debug, Args)]
struct Wait {
    /// Return at once; the work goes on
    #[arg(long)]
    no_wait: bool,
    /// Wait no longer than this (then exit 6; the work goes on)
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_span)]
    timeout: crate::time::Span,
}

fn parse_span(text: &str) -> Result<crate::time::Span, String> {
    crate::config::units::span(text)
        .ok_or_else(|| format!("give {}", crate::config::units::SPAN_FORM))
}

/// A failure with the code it ends with.
#[derive(Debug)]
struct Failure {
    code: ExitCode,
    why: String,
}

impl Failure {
    fn new(code: ExitCode, why: impl Into<String>) -> Self {
        Self {
            code,
            why: why.into(),
        }
    }
}

type Outcome = Result<ExitCode, Failure>;

/// Runs the command line; the number is the process's exit code.
pub fn main() -> u8 {
    // Before anything costs time or memory: a worker is starting beside it, and it stays for as long as that.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|verb| verb == keeper::FIRST_OF_NAMESPACE)
    {
        return keeper::first_of_namespace();
    }
    let outcome = match Cli::parse().verb {
        Verb::Run(args) => return run::run(args),
        Verb::Supervisor(args) => return run::supervise(args),
        Verb::Lock(args) => return lock::lock(&args),
        Verb::Tend(args) => return lock::tend(args),
        Verb::Check(args) => check::check(&args),
        Verb::Plan(args) => plan::plan(&args),
        Verb::Reload(args) => act::reload(&args),
        Verb::Status(args) => status::status(&args),
        Verb::Start(args) => act::start(&args),
        Verb::Stop(args) => act::stop(&args),
        Verb::Restart(args) => act::restart(&args),
        Verb::Drain(args) => act::drain(&args),
        Verb::Undrain(args) => act::undrain(&args),
        Verb::Scale(args) => scale::scale(&args),
        Verb::Signal(args) => act::signal(&args),
        Verb::Singletons(args) => singletons::singletons(&args),
        Verb::Cluster(args) => cluster::cluster(&args),
        Verb::Endpoints(args) => endpoints::endpoints(&args),
        Verb::Logs(args) => logs::logs(&args),
        Verb::Events(args) => events::events(&args),
        Verb::Config(args) => config::config(&args),
        Verb::Cron(args) => return number(cron::cron(&args)),
    };
    number(outcome.map(ExitCode::number))
}

/// The exit code of an outcome; a failure is said.
fn number(outcome: Result<u8, Failure>) -> u8 {
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("leasehold: {}", failure.why.trim_end());
            failure.code.number()
        }
    }
}

/// Prints to stdout; a reader that went away (`| head`) ends us quietly instead of with a panic.
fn print(text: &str) -> Outcome {
    show(text.as_bytes()).map(|_| ExitCode::Ok)
}

/// Prints to stdout; false when the reader went away, and with it the reason to go on.
fn show(text: &[u8]) -> Result<bool, Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::new(
            ExitCode::Failed,
            format!("failed to print: {e}"),
        )),
    }
}

fn print_json<T: serde::Serialize>(value: &T) -> Outcome {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(ExitCode::Failed, e.to_string()))?;
    print(&(text + "\n"))
}
