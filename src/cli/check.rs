//! `leasehold check`: all faults of a configuration at once.

use std::{io::IsTerminal, path::PathBuf};

use clap::Args;

use crate::{
    cli::{Failure, Outcome, directories, print, print_json},
    config::{self, units::count},
    exit::ExitCode,
    sys::surroundings::ThisMachine,
};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration [default: ./leasehold.toml, then /etc/leasehold/leasehold.toml]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as `run` takes it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &CheckArgs) -> Outcome {
    let path = directories::configuration(args.file.clone().or_else(|| args.config.clone()))?;
    let colour = || std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match config::check(&path, &ThisMachine::from_outside()) {
        Ok((_, warnings)) if args.json => print_json(&warnings.rows()),
        Ok((config, warnings)) => {
            if !warnings.list.is_empty() {
                eprint!("{}", warnings.render(colour()));
            }
            print(&format!(
                "{}: ok: {}, revision {}\n",
                path.display(),
                config.size(),
                config.revision
            ))
        }
        Err(faults) if args.json => print_json(&faults.rows()).map(|_| ExitCode::Config),
        Err(faults) => {
            eprint!("{}", faults.render(colour()));
            let all = count(faults.list.len(), "fault");
            Err(Failure::new(
                ExitCode::Config,
                format!("{}: {all}", path.display()),
            ))
        }
    }
}
